"""The client of the comparison: one process that asks one system, the same way for all.

What is timed is a slice of some tenths of a second: as many batches as the system answers in it, by what it
has answered before. Ways to ask:

    "one at a time"    a call a batch, each waited for; the only way whose calls are timed one by one
    "pipelined"        as many batches under way as the client library can have
    "N threads"        N threads, each one at a time
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import psutil

from bench.proc import status_bytes
from bench.systems.system import Client
from bench.timing import quiet
from bench.workers import together_s
from bench.workloads import Access, Batch, Catalogue, Queries

ONE, PIPELINED = "one at a time", "pipelined"
_FRESH_BATCHES = 256
_CALL_BATCHES = 32
_PROBE_BATCHES, _PROBE_ROWS = 32, 4096
_WARM_ROWS = 65_536
_LOAD_ROWS = 4096
_WARM_EVERY = 8


class Case(NamedTuple):
    """What is asked for: rows of a batch, the share of IDs that are there, which of them."""

    batch_rows: int = 4096
    present: float = 1.0
    access: Access = "uniform"


class Slice(NamedTuple):
    """What a slice gave: millions of IDs or entries a second; p50 and p99 of a call in ms, 0 if not timed."""

    rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


def threads_of(way: str) -> int:
    """Return the calling threads of a way."""
    return int(way.removesuffix(" threads")) if way.endswith(" threads") else 1


class Asker:
    """A client and what it has learnt: how fast its system is."""

    def __init__(self, kind: type[Client], address: Any, catalogue: Catalogue, rows: int) -> None:
        self._catalogue, self._rows = catalogue, rows
        self._client = kind(address)
        self._random = np.random.default_rng(17)
        self._rates: dict[tuple[str, str, Case | int], float] = {}
        self._next = rows

    def first(self) -> None:
        """Have one batch answered rightly: only then is a system open."""
        batch = Queries(self._catalogue, self._rows).batch(self._random, _PROBE_ROWS)
        self._check(Case(), batch)

    def load(self) -> None:
        """Load the first `rows` entries, for a system that keeps them in memory."""
        self._client.load(self._catalogue.batches(0, self._rows, _LOAD_ROWS))

    def warm(self) -> None:
        """Bring everything into memory: by the client's own way, else by asking for every eighth entry."""
        if self._client.warm():
            return
        for first in range(0, self._rows, _WARM_EVERY * _WARM_ROWS):
            last = min(self._rows, first + _WARM_EVERY * _WARM_ROWS)
            self._client.lookup(self._catalogue.ids_of(np.arange(first, last, _WARM_EVERY, dtype=np.uint64)))

    def exercise(self) -> int:
        """Ask some batches, so that every buffer is there, and return this process's own memory in bytes."""
        queries = Queries(self._catalogue, max(1, self._rows))
        for _ in range(_PROBE_BATCHES):
            self._client.lookup(queries.batch(self._random, _PROBE_ROWS).ids)
        ctypes.CDLL(None).malloc_trim(0)
        return status_bytes("self", "RssAnon")

    def lookups(self, case: Case, way: str, slice_s: float) -> Slice:
        """Ask for about `slice_s` seconds."""
        queries = Queries(self._catalogue, self._rows, case.present, case.access)
        rate = self._rate("lookup", way, case, lambda: self._lookups_s(queries, case, way, 2, None))
        count = max(threads_of(way), int(rate * slice_s / case.batch_rows))
        calls: list[float] = []
        spent_s = self._lookups_s(queries, case, way, count, calls)
        return self._told("lookup", way, case, count * case.batch_rows, spent_s, calls)

    def puts(self, batch_rows: int, way: str, slice_s: float) -> Slice:
        """Put entries that nobody has put before for about `slice_s` seconds."""
        rate = self._rate("put", way, batch_rows, lambda: self._puts_s(batch_rows, way, 2, None))
        count = max(threads_of(way), int(rate * slice_s / batch_rows))
        calls: list[float] = []
        spent_s = self._puts_s(batch_rows, way, count, calls)
        told = self._told("put", way, batch_rows, count * batch_rows, spent_s, calls)
        self._client.settle()
        return told

    def close(self) -> None:
        """Let go of the system."""
        self._client.close()

    def _rate(self, what: str, way: str, case: Case | int, attempt: Callable[[], float]) -> float:
        """Return the IDs a second expected of a way; the first time it is tried with two batches."""
        if (what, way, case) not in self._rates:
            batch_rows = case.batch_rows if isinstance(case, Case) else case
            self._rates[what, way, case] = 2 * batch_rows / attempt()
        return self._rates[what, way, case]

    def _told(
        self, what: str, way: str, case: Case | int, rows: int, spent_s: float, calls: list[float]
    ) -> Slice:
        self._rates[what, way, case] = rows / spent_s
        percentiles = np.percentile(calls, (50, 99)) * 1e3 if calls else (0.0, 0.0)
        return Slice(rows / spent_s / 1e6, *map(float, percentiles))

    def _lookups_s(
        self, queries: Queries, case: Case, way: str, count: int, calls: list[float] | None
    ) -> float:
        fresh = [queries.batch(self._random, case.batch_rows) for _ in range(min(count, _FRESH_BATCHES))]
        ids = [fresh[i % len(fresh)].ids for i in range(count)]
        lookup = self._client.lookup
        if way == PIPELINED:
            many = [ids[i : i + _CALL_BATCHES] for i in range(0, count, _CALL_BATCHES)]
            spent_s = _in_turn(lambda batches: [None for _ in self._client.lookups(batches)], many, None)
        elif way == ONE:
            spent_s = _in_turn(lookup, ids, calls)
        else:
            spent_s = together_s(lookup, ids, threads_of(way))
        self._check(case, fresh[-1])
        return spent_s

    def _puts_s(self, batch_rows: int, way: str, count: int, calls: list[float] | None) -> float:
        before = threads_of(way)
        first, self._next = self._next, self._next + (before + count) * batch_rows
        batches = list(self._catalogue.batches(first, (before + count) * batch_rows, batch_rows))

        def put(batch: Any) -> None:
            self._client.put(*batch)

        if way == ONE:
            put(batches[0])
            return _in_turn(put, batches[1:], calls)
        return together_s(put, batches[before:], before, batches[:before])

    def _check(self, case: Case, batch: Batch) -> None:
        answer = self._client.lookup(batch.ids)
        if self._client.answers:
            queries = Queries(self._catalogue, self._rows, case.present, case.access)
            queries.check(batch, answer.found, answer.locations)


def server_bytes(pid: int) -> int:
    """Return the memory of a server and its children that no file backs; what they share counts once."""
    root = psutil.Process(pid)
    pids = [each.pid for each in (root, *root.children(recursive=True))]
    shared = max(status_bytes(each, "RssShmem") for each in pids)
    return shared + sum(status_bytes(each, "RssAnon") for each in pids)


def _in_turn(call: Callable[[Any], Any], items: list[Any], calls: list[float] | None) -> float:
    clock = time.perf_counter
    with quiet():
        start = at = clock()
        for item in items:
            call(item)
            now = clock()
            if calls is not None:
                calls.append(now - at)
            at = now
        return at - start
