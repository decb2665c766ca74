"""Redis through redis-py with hiredis, as a store of the same entries.

A batch must become a list of `bytes` and its answer an array again, for that is what a caller with numpy
columns pays. One client object serves all threads; redis-py gives each a connection of its own.

What is kept below the data directory is a dump: redis-server reads it when it starts, and never writes it
unless told to.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

from bench.servers import Server, free_port
from bench.systems.system import (
    Batches,
    Client,
    Columns,
    Ids,
    Locations,
    Place,
    System,
    output,
    package_version,
    unordered,
)
from bench.timing import Progress

Sync = Literal["no", "everysec", "always"]
"""Redis's `appendfsync`; "no": without an append-only file at all."""


class Redis(Server):
    """redis-server on `directory`: it holds what dump.rdb there holds, nothing where there is none.

    `port` is where it answers, on loopback.
    """

    def __init__(self, directory: Path, sync: Sync = "no") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        settings = {
            "port": str(self.port), "bind": "127.0.0.1", "dir": str(directory),
            "dbfilename": "dump.rdb", "save": "",
            "rdbcompression": "no",  # hashes do not shrink, and a plain dump is read sooner
            "appendonly": "no" if sync == "no" else "yes", "appendfsync": sync,
            "auto-aof-rewrite-percentage": "0",  # nothing but the writes themselves
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().__init__(["redis-server", *words], stdout=subprocess.DEVNULL)
        self.wait(self._answers)

    def _answers(self) -> bool:
        """Return whether it serves: while it reads its dump it accepts connections, but refuses a PING."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class RedisClient(Client):
    """What a redis-server on loopback port `address` holds: 16-byte keys, 24-byte values."""

    def __init__(self, address: int) -> None:
        import redis

        self._redis = redis.Redis(port=address, socket_timeout=None)

    def lookup(self, ids: Ids) -> Columns:
        """Return the locations of `ids` by one MGET."""
        return _columns(self._redis.mget(ids.tolist()))

    def lookups(self, batches: Sequence[Ids]) -> Iterator[Columns]:
        """Send an MGET a batch, eight in one pipeline."""
        for start in range(0, len(batches), _PIPELINED):
            pipeline = self._redis.pipeline(transaction=False)
            for ids in batches[start : start + _PIPELINED]:
                pipeline.mget(ids.tolist())
            yield from map(_columns, pipeline.execute())

    def put(self, ids: Ids, locations: Locations) -> None:
        """Set all by one MSET."""
        self._redis.execute_command("MSET", *_pairs(ids, locations))

    def load(self, batches: Batches) -> None:
        """Send an MSET a batch, then write the dump and wait until that is done."""
        super().load(batches)
        with Progress("redis, dump"):
            self._redis.save()

    def expect(self, rows: int) -> None:
        """Raise AssertionError unless it holds `rows` entries."""
        held = int(self._redis.dbsize())
        if held != rows:
            raise AssertionError(f"redis holds {held} entries instead of {rows}")

    def used_bytes(self) -> int:
        """Return the memory it uses, as it says itself."""
        return int(self._redis.info("memory")["used_memory"])

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class RedisSystem(System):
    """redis-server with everything in memory."""

    key, name = "redis", "Redis 7, no append-only file"
    client = RedisClient
    packages, programs = ("redis", "hiredis"), ("redis-server",)
    durable = False
    sync: ClassVar[Sync] = "no"

    def version(self) -> str:
        """Return the versions of server and client."""
        server = next((w[2:] for w in output("redis-server", "--version").split() if w.startswith("v=")), "?")
        return f"redis-server {server}, {package_version('redis')}, {package_version('hiredis')}"

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Start redis-server."""
        with Redis(directory, self.sync) as server:
            yield Place(server.port, server.pid)


class RedisEverySecond(RedisSystem):
    """The same, its log synced once a second: up to a second of writes is lost."""

    key, name, sync = "redis-everysec", "Redis 7, append-only file synced each second", "everysec"
    reads = False


class RedisAlways(RedisSystem):
    """The same, each write synced before it is answered."""

    key, name, sync = "redis-always", "Redis 7, append-only file synced always", "always"
    reads, durable = False, True


LOAD_BATCH_ROWS = 4096
_PIPELINED = 8


def _columns(values: list[bytes | None]) -> Columns:
    return unordered(values, None)


def _pairs(ids: Ids, locations: Locations) -> Iterator[bytes]:
    return chain.from_iterable(zip(ids.tolist(), locations.view("V24").tolist(), strict=True))
