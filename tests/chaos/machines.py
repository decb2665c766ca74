"""The machines of a cluster, each on a host of its own: etcd's, and those with a node and a clock of its own.

A machine's process can be killed, stopped and started again; a node's clock can be set, and its data lost.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from kvmeta_server.dev import Process, etcd_program
from tests.chaos.network import Host

PORT = 7400
MAX_SKEW_S = 10
"""Of the cluster: small, so that a clock further ahead is right again within a round."""
_READY_S = 240.0
_AGAIN_S = 1.0
SETTINGS = (
    "insecure=true",
    "cluster.partitions=64",
    f"cluster.max_skew_s={MAX_SKEW_S}",
    "cluster.repair_interval_s=12",  # so that tombstones are purged while hints wait
    "limits.drain_s=5",
)


class Machine:
    """A host with one process, which is started as it was."""

    def __init__(self, name: str, host: Host, log: Path) -> None:
        self.name, self.host, self._log = name, host, log
        self._process: Process | None = None

    def command(self) -> list[str]:
        """Return what is started on the host."""
        raise NotImplementedError

    def ready(self, said: str) -> bool:
        """Return whether the process, as its log says, is ready."""
        raise NotImplementedError

    def launch(self) -> None:
        """Start the process; do not wait for it."""
        self._since = self._log.stat().st_size if self._log.exists() else 0
        self._process = Process(self.host.command(*self.command()), self._log)

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until what was launched is ready; one that ends meanwhile is started again."""
        end = time.monotonic() + _READY_S
        while not self.ready(self._said()):
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} does not get ready: {self._said()[-2000:]}")
            if self.running:
                time.sleep(0.1)
            else:
                time.sleep(_AGAIN_S)
                self.kill()
                self.launch()

    @property
    def running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process is not None and self._process.running

    @property
    def standing_still(self) -> bool:
        """Return whether the process is there and stopped."""
        if self._process is None or not self._process.running:
            return False
        status = Path(f"/proc/{self._process.process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def send(self, number: int) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send(number)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.stop(signal.SIGKILL)

    def refused(self, reason: str) -> None:
        """Start the process until it ends for `reason`: without etcd a node goes on with the map it has."""
        end = time.monotonic() + _READY_S
        while True:
            self.launch()
            while self.running and not self.ready(self._said()):
                time.sleep(0.1)
            self.kill()
            if reason in self._said():
                return
            if "etcd does not answer" not in self._said() or time.monotonic() > end:
                raise AssertionError(f"{self.name} is not refused: {self._said()[-2000:]}")

    def stop(self) -> None:
        """End the process in order."""
        assert self._process is not None
        self._process.stop()

    def _said(self) -> str:
        with open(self._log, errors="replace") as log:
            log.seek(self._since)
            return log.read()


class EtcdMachine(Machine):
    """The machine of etcd, one member."""

    def __init__(self, host: Host, directory: Path) -> None:
        super().__init__("etcd", host, directory / "etcd.log")
        self._data = directory / "etcd"
        self.url = f"http://{host.address}:2379"

    def command(self) -> list[str]:
        """Return what is started on the host."""
        peer = "http://127.0.0.1:2380"
        return [
            etcd_program(), "--data-dir", str(self._data), "--name", "chaos",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"chaos={peer}",
        ]  # fmt: skip

    def ready(self, said: str) -> bool:
        """Return whether it serves clients."""
        return "ready to serve client requests" in said


class NodeMachine(Machine):
    """The machine of a node. After its data is lost it joins under a new name: NAME-2, NAME-3 and so on."""

    def __init__(self, name: str, host: Host, directory: Path, etcd: str, plant: str = "") -> None:
        super().__init__(name, host, directory / f"{name}.log")
        self._data, self._etcd, self._plant = directory / name, etcd, plant
        self._clock = directory / f"{name}.clock"
        self._lives = 1
        self.set_clock(0)

    @property
    def node(self) -> str:
        """Return the name of the node here."""
        return f"{self.name}-{self._lives}"

    @property
    def address(self) -> str:
        """Return where the node listens."""
        return f"{self.host.address}:{PORT}"

    def command(self) -> list[str]:
        """Return what is started on the host."""
        return [
            sys.executable, "-m", "tests.chaos.node_program", str(self._clock), self._plant,
            "serve", "--data", str(self._data), "--listen", self.address, "--log-format", "json",
            "--cluster", "chaos", "--etcd", self._etcd, "--node", self.node,
            *(word for setting in SETTINGS for word in ("--set", setting)),
        ]  # fmt: skip

    def ready(self, said: str) -> bool:
        """Return whether the node listens."""
        return '"event": "ready"' in said or '"event":"ready"' in said

    def set_clock(self, ahead_s: int) -> None:
        """Set the clock so far ahead of the true time, from now on."""
        self._seen.unlink(missing_ok=True)
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(str(ahead_s))
        fresh.rename(self._clock)  # whole at every moment

    def sees_clock(self, ahead_s: int) -> bool:
        """Return whether the node has looked at its clock since it was set so far ahead."""
        return self._seen.exists() and self._seen.read_text() == str(ahead_s)

    @property
    def _seen(self) -> Path:
        return self._clock.with_suffix(".seen")

    def lose_data(self) -> None:
        """Lose the disk: the next start is that of another node."""
        shutil.rmtree(self._data)
        self._lives += 1


class Machines:
    """The machines of one cluster; faults claim those that they take down."""

    def __init__(self, etcd: EtcdMachine, nodes: Sequence[NodeMachine]) -> None:
        self.etcd, self.nodes = etcd, list(nodes)
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    @property
    def target(self) -> str:
        """Return what clients open."""
        return "kvmeta://" + ",".join(machine.address for machine in self.nodes)

    @property
    def hosts(self) -> list[Host]:
        """Return the hosts of etcd and the nodes."""
        return [self.etcd.host, *(machine.host for machine in self.nodes)]

    @contextmanager
    def claim(self, random: Random) -> Iterator[NodeMachine]:
        """Choose a machine that no other fault has claimed, and claim it."""
        with self._lock:
            machine = random.choice([each for each in self.nodes if each.name not in self._claimed])
            self._claimed.add(machine.name)
        try:
            yield machine
        finally:
            with self._lock:
                self._claimed.discard(machine.name)

    def start(self) -> None:
        """Start etcd, then the node that founds the cluster, then all others at once."""
        self.etcd.start()
        first, *others = self.nodes
        first.start()
        for machine in others:
            machine.launch()
        for machine in others:
            machine.wait()

    def kill(self) -> None:
        """End all processes."""
        for machine in (*self.nodes, self.etcd):
            with suppress(OSError):
                machine.kill()
