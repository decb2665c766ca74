"""How fast lookups are: against the targets, against growth, against unmerged runs, against RocksDB.

All subjects are open together and asked in turn, round after round, each with fresh random batches that it
never saw: A B C A B C …; a moment in which the machine is slow meets them all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kvmeta
from bench.stores import Stores
from bench.systems import rocksdb
from bench.table import Answer, Series, ratio
from bench.timing import Progress, quiet
from bench.workloads import Batch, Queries


@dataclass
class Subject:
    """Something that answers lookups: `lookup(ids)` returns columns with `found` and `locations`."""

    name: str
    lookup: Callable[[Any], Any]
    queries: Queries
    batches: int
    table: rocksdb.Table | None = None
    get: Callable[[Any], Any] | None = None
    ns: list[float] = field(default_factory=list)
    bare_ns: list[float] = field(default_factory=list)

    def round(self, random: np.random.Generator, batch_rows: int) -> None:
        """Ask a round of fresh batches and note the cost of an ID."""
        batches = [self.queries.batch(random, batch_rows) for _ in range(self.batches + self.batches // 4)]
        timed = batches[self.batches // 4 :]
        for batch in batches[: self.batches // 4]:
            self.lookup(batch.ids)
        bare = self.table.bare_s if self.table else 0.0
        with quiet():
            spent = _ask(self.lookup, timed)
        count = len(timed) * batch_rows
        self.ns.append(spent / count * 1e9)
        if self.table:
            self.bare_ns.append((self.table.bare_s - bare) / count * 1e9)
        hits = self.lookup(timed[-1].ids)
        self.queries.check(timed[-1], hits.found, hits.locations)

    def series(self, name: str = "") -> Series:
        """Return the cost of an ID."""
        return Series(name or self.name, "ns/ID", tuple(self.ns))

    def bare(self) -> Series:
        """Return the cost of an ID in the peer's multi-get alone."""
        return Series(f"{self.name}, bare multi-get", "ns/ID", tuple(self.bare_ns))


def answers(stores: Stores, *, growth_judged: bool) -> Iterator[Answer]:
    """Measure and yield the answers about lookups."""
    sizes = stores.sizes
    random = np.random.default_rng(7)
    with ExitStack() as stack:
        subjects = _open(stores, stack)
        singles: list[float] = []
        gets: list[float] = []
        together: list[float] = []
        big = subjects["big"]
        with Progress("lookups", sizes.lookup_rounds) as progress:
            for done in range(sizes.lookup_rounds):
                for subject in subjects.values():
                    subject.round(random, sizes.batch_rows)
                together.append(_two_threads(big, random, sizes.batch_rows))
                singles.append(_singles(big.lookup, big.queries, random, sizes.single_calls))
                gets.append(_singles(big.get, big.queries, random, sizes.single_calls))
                progress(done + 1)
    rows, small_rows = f"{sizes.rows:,}", f"{sizes.small_rows:,}"
    absent, small, upper = subjects["absent"], subjects["small"], subjects["upper"]
    yield Answer(
        "lookup", f"lookup of present IDs, {rows} rows, batches of {sizes.batch_rows:,}", 250,
        big.series(), beside=[absent.series("absent IDs"), subjects["mixed"].series("half of them absent")],
    )  # fmt: skip
    gain = Series("two threads", "x", tuple(together))
    yield Answer("two-threads", "two threads against one", 1.7, gain, at_least=True)
    least = [subjects["least"].series()] if "least" in subjects else []
    yield Answer(
        "growth", f"cost at {rows} rows against {small_rows}", 2,
        ratio("growth", big.series(), small.series()), beside=[small.series(), *least], judged=growth_judged,
    )  # fmt: skip
    yield Answer(
        "upper-runs", "lookup under a full memtable and 8 upper runs", 700,
        upper.series(), beside=[subjects["upper absent"].series("absent IDs")],
    )  # fmt: skip
    yield Answer(
        "single", "batch of one", 50, Series("lookup", "us", tuple(singles)),
        beside=[Series("dataset.get", "us", tuple(gets))],
    )  # fmt: skip
    yield _against_peers(subjects, rows, small_rows)


def _against_peers(subjects: dict[str, Subject], rows: str, small_rows: str) -> Answer:
    """Judge against the quicker of RocksDB's block-based forms, on the same entries."""
    blocks = [subjects["block cache"], subjects["block mmap"]]
    quicker = min(blocks, key=lambda subject: subject.series().median)
    beside = []
    for subject in blocks:
        times = ratio(f"times {subject.name}", subject.series(), subjects["big"].series())
        beside += [times, subject.series(), subject.bare()]
    for kind in ("plain", "cuckoo"):
        subject = subjects[kind]
        times = ratio(f"times {subject.name}", subject.series(), subjects["small"].series())
        beside += [times, subject.series(), subject.bare()]
    return Answer(
        "rocksdict-lookup", f"times as fast as rocksdict multi-get ({quicker.name})", 8,
        ratio("times", quicker.series(), subjects["big"].series()), at_least=True, beside=beside,
    )  # fmt: skip


def _open(stores: Stores, stack: ExitStack) -> dict[str, Subject]:
    """Open and warm all subjects, in the order in which they are asked."""
    sizes, catalogue = stores.sizes, stores.catalogue
    subjects: dict[str, Subject] = {}

    def add(key: str, name: str, lookup: Any, rows: int, present: float = 1.0, table: Any = None) -> None:
        count = sizes.lookup_batches if table is None else sizes.peer_batches
        subjects[key] = Subject(name, lookup, Queries(catalogue, rows, present), count, table)

    def dataset(path: Any, options: Any = None) -> kvmeta.Dataset:
        opened = stack.enter_context(kvmeta.open(path, options=options)).dataset()
        with Progress(f"warming {path.parent.name}"):
            for _ in opened.scan():
                pass
        return opened

    def peer(kind: rocksdb.Kind, rows: int) -> None:
        table = stack.enter_context(rocksdb.opened(stores.peer(kind, rows), kind, rows))
        with Progress(f"warming rocksdict, {kind}"):
            if table.warm() != rows:
                raise AssertionError(f"the {kind} table does not hold {rows} entries")
        add(kind, f"rocksdict, {kind}, {rows:,} rows", table.lookup, rows, table=table)

    big, upper = dataset(stores.big()), dataset(stores.upper(), stores.still_options())
    small, least = dataset(stores.small()), stores.least()
    add("big", f"{sizes.rows:,} rows", big.lookup, sizes.rows)
    subjects["big"].get = big.get
    peer("block cache", sizes.rows)
    peer("block mmap", sizes.rows)
    add("small", f"{sizes.small_rows:,} rows", small.lookup, sizes.small_rows)
    peer("plain", sizes.small_rows)
    peer("cuckoo", sizes.small_rows)
    if least is not None and sizes.least_rows is not None:
        add("least", f"{sizes.least_rows:,} rows", dataset(least).lookup, sizes.least_rows)
    add("absent", "absent IDs", big.lookup, sizes.rows, present=0.0)
    add("mixed", "half absent", big.lookup, sizes.rows, present=0.5)
    add("upper", "upper runs", upper.lookup, sizes.upper_rows)
    add("upper absent", "upper runs, absent IDs", upper.lookup, sizes.upper_rows, present=0.0)
    return subjects


def _ask(lookup: Callable[[Any], Any], batches: list[Batch]) -> float:
    start = time.perf_counter()
    for batch in batches:
        lookup(batch.ids)
    return time.perf_counter() - start


def _two_threads(subject: Subject, random: np.random.Generator, batch_rows: int) -> float:
    """Return how much more two threads answer in the same time than one does, before and after them.

    Both threads are at work before the clock starts: the system needs some milliseconds to give a new one a
    core of its own.
    """
    count = 4 * subject.batches
    shares = [[subject.queries.batch(random, batch_rows) for _ in range(count)] for _ in range(4)]
    barrier = threading.Barrier(2)
    ends: list[tuple[float, float]] = []

    def work(share: list[Batch]) -> None:
        _ask(subject.lookup, share[: count // 4])
        barrier.wait()
        start = time.perf_counter()
        _ask(subject.lookup, share)
        ends.append((start, time.perf_counter()))

    with quiet():
        before = _ask(subject.lookup, shares[0])
        threads = [threading.Thread(target=work, args=(share,)) for share in shares[1:3]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = _ask(subject.lookup, shares[3])
    both = max(end for _, end in ends) - min(start for start, _ in ends)
    return (before + after) / both


def _singles(call: Callable[[Any], Any], queries: Queries, random: np.random.Generator, calls: int) -> float:
    """Return the time of a call with one ID (an array of one), in microseconds."""
    ids = queries.batch(random, calls).ids
    each = [ids[i : i + 1] for i in range(calls)]
    with quiet():
        start = time.perf_counter()
        for one in each:
            call(one)
        return (time.perf_counter() - start) / calls * 1e6
