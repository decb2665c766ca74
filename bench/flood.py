"""What hanging clients cost: 1,000 idle connections and 300 slow calls, against a server of its own.

    idle     settings exchanged, then silence
    slow     half of them stop in the middle of the message of a lookup of 4,096 IDs; the others send it all
             and take no byte of the answer (a window of 0), so the server must keep it

A healthy client asks batches of 256 from one thread, without a flood and during it, in turn. Memory is the
process's resident set: the most seen during a flood, less what it was before the first one. It is told, too,
how many connections and calls still hang when a round ends, for a server that hangs up is not flooded.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from bench import frames, servers
from bench.crowd import BATCH_ROWS, Callers
from bench.remote_lookups import warm
from bench.table import Answer, Series, ratio
from bench.timing import Progress
from bench.workers import Worker
from bench.workloads import Catalogue
from kvmeta.v1 import kvmeta_pb2 as pb

MEMORY_MB, TIMES = 100, 10
_LOOKUP = "/kvmeta.v1.StoreService/Lookup"
_SLOW_ROWS = 4096
_HALF = 0.5
_FILES = 1024  # besides the connections
_SAMPLE_S = 0.1
_SETTLE_S = 0.3


class Held(NamedTuple):
    """What still hangs: connections that say nothing, calls half sent, answers nobody takes."""

    idle: int
    half: int
    unread: int


class Flood:
    """Connections that hang, until `close`."""

    def __init__(self, address: str, idle: int, slow: int) -> None:
        ids = Catalogue().ids_of(np.arange(_SLOW_ROWS, dtype=np.uint64))
        message = pb.LookupRequest(ids=pb.Packed(plain=ids.tobytes())).SerializeToString()
        self._stack = ExitStack()
        self._idle, self._half, self._unread = [], [], []
        try:
            for _ in range(idle):
                self._idle.append(self._connected(address))
            for _ in range(slow // 2):
                self._half.append(self._connected(address))
                self._half[-1].call(_LOOKUP, message, _HALF)
            for _ in range(slow - slow // 2):
                self._unread.append(self._connected(address, 0))
                self._unread[-1].call(_LOOKUP, message)
        except BaseException:
            self.close()
            raise

    def held(self) -> Held:
        """Return how much of it the server still bears."""
        idle = sum(each.received() is not None for each in self._idle)
        half = sum(not _ended(each.received()) for each in self._half)
        unread = [each.received() for each in self._unread]
        answered = (found is not None and any(f.kind == frames.HEADERS for f in found) for found in unread)
        return Held(idle, half, sum(a and not _ended(f) for a, f in zip(answered, unread, strict=True)))

    def close(self) -> None:
        """Hang up."""
        self._stack.close()

    def _connected(self, address: str, *window: int) -> frames.Connection:
        connection = frames.Connection(address, *window)
        self._stack.callback(connection.close)
        return connection


def _ended(found: list[frames.Frame] | None) -> bool:
    """Return whether the server ended a call: it hung up, reset it, or sent its last frame."""
    if found is None:
        return True
    last = frames.END_STREAM
    return any(
        f.kind in (frames.RESET, frames.GOAWAY)
        or (f.kind in (frames.DATA, frames.HEADERS) and f.flags & last)
        for f in found
    )


def answers(data: Any, sizes: Any, seed: int) -> Iterator[Answer]:
    """Measure and yield the answers about memory and a healthy client's p99; `data` is the store served."""
    _allow_files(sizes.idle_connections + sizes.slow_calls + _FILES)
    before: list[float] = []
    during: list[float] = []
    grown: list[float] = []
    anonymous: list[float] = []
    held: list[Held] = []
    with ExitStack() as stack:
        server = stack.enter_context(servers.Kvmeta(data))
        address = server.target.removeprefix("kvmeta://")
        warm(server.target, sizes.rows, seed)
        healthy = stack.enter_context(Worker(Callers, server.target, sizes.rows, seed, 1))
        base: tuple[int, int] | None = None
        with Progress("floods", sizes.flood_rounds) as progress:
            for done in range(sizes.flood_rounds):
                before.append(_p99_ms(healthy.call("call", time.monotonic(), sizes.healthy_s)))
                base = base or server.memory_bytes()
                flood = Flood(address, sizes.idle_connections, sizes.slow_calls)
                try:
                    time.sleep(_SETTLE_S)
                    healthy.begin("call", time.monotonic(), sizes.healthy_s)
                    seen = _most(server, sizes.healthy_s)
                    during.append(_p99_ms(healthy.result()))
                    held.append(flood.held())
                finally:
                    flood.close()
                grown.append((seen[0] - base[0]) / 1e6)
                anonymous.append((seen[1] - base[1]) / 1e6)
                time.sleep(_SETTLE_S)
                progress(done + 1)
    assert base is not None
    what = f"{sizes.idle_connections:,} idle connections and {sizes.slow_calls:,} slow calls"
    still = [
        Series(f"still there in the end: {name}", "", tuple(float(each[i]) for each in held))
        for i, name in enumerate(("idle connections", "half-sent calls", "answers not taken"))
    ]
    yield Answer(
        "flood-memory", f"the server's memory under {what}: more by", MEMORY_MB,
        Series("resident", "MB", tuple(grown)),
        beside=[
            Series("anonymous", "MB", tuple(anonymous)),
            Series("resident before, mapped pages of the store and all", "MB", (base[0] / 1e6,)),
            Series("anonymous before", "MB", (base[1] / 1e6,)),
            *still,
        ],
    )  # fmt: skip
    idle_p99 = Series("p99 without", "ms", tuple(before))
    flood_p99 = Series("p99 under them", "ms", tuple(during))
    yield Answer(
        "flood-p99", f"a healthy client's p99 under them, batches of {BATCH_ROWS}: times", TIMES,
        ratio("times", flood_p99, idle_p99), beside=[idle_p99, flood_p99],
    )  # fmt: skip


def _most(server: servers.Server, for_s: float) -> tuple[int, int]:
    """Return the most memory seen in so many seconds."""
    end = time.monotonic() + for_s
    seen = [server.memory_bytes()]
    while time.monotonic() < end:
        time.sleep(_SAMPLE_S)
        seen.append(server.memory_bytes())
    return max(each[0] for each in seen), max(each[1] for each in seen)


def _p99_ms(spent_s: Any) -> float:
    return float(np.percentile(spent_s, 99) * 1e3)


def _allow_files(count: int) -> None:
    """Allow this process and those it starts so many open files, if the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
