"""Servers under test, processes of their own on free loopback ports: kvmeta, the echo, and a base for peers.

They are told to stop by SIGTERM and waited for, so that a store served from the data directory is closed
whole.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from bench.timing import Progress

_ROOT = Path(__file__).resolve().parents[1]
READY_S = 240
_STOP_S = 90


class Server:
    """A process that answers. `pid` is its own."""

    def __init__(self, command: list[str], **more: Any) -> None:
        more.setdefault("cwd", _ROOT)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, **more)
        self._name = Path(command[0]).name

    def wait(self, answers: Callable[[], bool]) -> None:
        """Return when it answers; stop it and raise RuntimeError if it ends or takes too long."""
        end = time.monotonic() + READY_S
        with Progress(self._name):
            while not answers():
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError(f"{self._name} did not start")
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def memory_bytes(self) -> tuple[int, int]:
        """Return the resident memory: all of it, and the anonymous part (without mapped files)."""
        whole = psutil.Process(self.pid).memory_info()
        return whole.rss, whole.rss - whole.shared  # on Linux "shared" is what files back

    def stop(self) -> None:
        """Tell the process to end and wait until it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Kvmeta(Server):
    """`kvmeta serve` on the store `data`, as a user starts it; `target` is what clients open."""

    def __init__(self, data: Path) -> None:
        words = ["serve", "--data", str(data), "--listen", "127.0.0.1:0", "--log-format", "json"]
        super().__init__([sys.executable, "-m", "kvmeta", *words], stderr=subprocess.PIPE)
        self.target = ""
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        with Progress("kvmeta serve"):
            self._ready.wait(READY_S)
        if not self.target:
            self.stop()
            raise RuntimeError("kvmeta serve did not get ready:\n" + "".join(self._lines))

    def stop(self) -> None:
        """Tell the server to end and wait until its store is closed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._reader.join(_STOP_S)
        super().stop()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:  # to the end, so that the server never waits for a reader
            self._lines = [*self._lines[-20:], line]
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "ready":
                self.target = f"kvmeta://{event['address']}"
                self._ready.set()
        self._ready.set()


class Echo(Server):
    """bench/echo.py; `address` is HOST:PORT."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "bench.echo"], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self.stop()
            raise RuntimeError("the echo server did not start")
        self.address = f"127.0.0.1:{port}"


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def listening(port: int) -> bool:
    """Return whether somebody accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
