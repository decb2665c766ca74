"""How fast durable puts, bulk loads and scans are.

Puts come in rounds, kvmeta then RocksDB, each into an empty directory. A round's rate counts the puts alone,
while flushes and merges run beside them; what they left undone is then waited for, and the rate that counts
this too stands beside it ("settled").
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kvmeta
from bench.stores import LOAD_BATCH_ROWS, Stores
from bench.systems import rocksdb
from bench.table import Answer, Series, ratio
from bench.timing import Progress, quiet, seconds
from kvmeta.embedded import EmbeddedStore

Batches = list[tuple[Any, Any]]


class Puts(NamedTuple):
    """A round of puts: seconds of each call, and seconds until nothing was left to flush or merge."""

    calls_s: np.ndarray
    settling_s: float
    bytes_per_entry: float


def answers(stores: Stores) -> Iterator[Answer]:
    """Measure and yield the answers about writes and scans."""
    yield from _puts(stores)
    yield _load(stores)
    yield _scan(stores)


def _puts(stores: Stores) -> Iterator[Answer]:
    sizes = stores.sizes
    batches = list(stores.catalogue.batches(0, sizes.put_rows, sizes.batch_rows))
    ours: list[Puts] = []
    theirs: list[Puts] = []
    with Progress("durable puts", 2 * sizes.put_rounds) as progress:
        for done in range(sizes.put_rounds):
            ours.append(_put_kvmeta(stores, batches))
            progress(2 * done + 1)
            theirs.append(_put_peer(stores, batches))
            progress(2 * done + 2)
    shutil.rmtree(stores.scratch(), ignore_errors=True)
    rate = _rate("entries", sizes.put_rows, ours)
    peer_rate = _rate("rocksdict, synced batches", sizes.put_rows, theirs)
    settled = _rate("settled", sizes.put_rows, ours, settled=True)
    peer_settled = _rate("rocksdict, settled", sizes.put_rows, theirs, settled=True)
    space = Series("disk afterwards", "B/entry", tuple(each.bytes_per_entry for each in ours))
    yield Answer(
        "put", f"durable puts, {sizes.put_rows:,} entries in batches of {sizes.batch_rows:,}", 0.8,
        rate, at_least=True, beside=[settled, *_percentiles("a call", ours), space],
    )  # fmt: skip
    yield Answer(
        "rocksdict-put", "times as fast as rocksdict's synced batches", 2,
        ratio("times", rate, peer_rate), at_least=True,
        beside=[
            peer_rate, peer_settled, ratio("times, both settled", settled, peer_settled),
            *_percentiles("rocksdict, a call", theirs),
        ],
    )  # fmt: skip


def _put_kvmeta(stores: Stores, batches: Batches) -> Puts:
    path, options = stores.scratch(), stores.put_options()
    with kvmeta.open(path, options=options) as store:
        assert isinstance(store, EmbeddedStore)
        put = store.dataset().put
        _warm(put, batches)
        calls = _time_calls(put, batches)
        # Done here and by the store's own thread, whichever comes first.
        settling = seconds(lambda: [None for _ in iter(store.engine.background.step, False)])
        figures = store.stats().datasets[0]
        return Puts(calls, settling, figures.disk_bytes / max(1, figures.rows))


def _put_peer(stores: Stores, batches: Batches) -> Puts:
    writer = rocksdb.Writer(stores.scratch())
    try:
        _warm(writer.put, batches)
        calls = _time_calls(writer.put, batches)
        return Puts(calls, seconds(writer.settle), 0.0)
    finally:
        writer.close()


def _warm(put: Callable[[Any, Any], None], batches: Batches) -> None:
    """Put the first batches once before; they are put again, which changes no count of entries."""
    for batch in batches[:4]:
        put(*batch)


def _time_calls(put: Callable[[Any, Any], None], batches: Batches) -> np.ndarray:
    calls = np.empty(len(batches))
    with quiet():
        for i, batch in enumerate(batches):
            start = time.perf_counter()
            put(*batch)
            calls[i] = time.perf_counter() - start
    return calls


def _rate(name: str, rows: int, rounds: Iterable[Puts], *, settled: bool = False) -> Series:
    spent = [each.calls_s.sum() + (each.settling_s if settled else 0.0) for each in rounds]
    return Series(name, "M entries/s", tuple(float(rows / each / 1e6) for each in spent))


def _percentiles(name: str, rounds: Iterable[Puts]) -> list[Series]:
    calls = [each.calls_s * 1e3 for each in rounds]
    return [
        Series(f"{name}, p{share}", "ms", tuple(float(np.percentile(each, share)) for each in calls))
        for share in (50, 99)
    ]


def _load(stores: Stores) -> Answer:
    """Time loads of batches that are in memory already, and in turn with them loads that make theirs."""
    sizes = stores.sizes
    rows = sizes.load_rows

    def made() -> Iterable[tuple[Any, Any]]:
        return stores.catalogue.batches(0, rows, LOAD_BATCH_ROWS)

    ready: Batches = []
    loads, whole, making = [], [], []
    with Progress("bulk loads", sizes.load_rounds + 1) as progress:
        ready.extend(made())
        _load_once(stores.scratch(), ready)  # the first is slower: its memory is new to the process
        for done in range(sizes.load_rounds):
            loads.append(_load_once(stores.scratch(), ready))
            whole.append(_load_once(stores.scratch(), made()))
            making.append(seconds(lambda: deque(made(), maxlen=0)))
            progress(done + 1)
    shutil.rmtree(stores.scratch(), ignore_errors=True)
    return Answer(
        "load", f"bulk load of {rows:,} unsorted entries", 2,
        _per_second("entries", rows, loads), at_least=True,
        beside=[
            _per_second("making the batches alone", rows, making),
            _per_second("made while it loads", rows, whole),
        ],
    )  # fmt: skip


def _load_once(path: Path, batches: Iterable[tuple[Any, Any]]) -> float:
    with kvmeta.open(path) as store:
        dataset = store.dataset()
        return seconds(lambda: dataset.load(batches))


def _scan(stores: Stores) -> Answer:
    rows, rounds = stores.sizes.rows, []
    with kvmeta.open(stores.big()) as store, Progress("scans", stores.sizes.scan_rounds) as progress:
        dataset = store.dataset()
        for done in range(stores.sizes.scan_rounds + 1):  # the first only warms
            count = 0

            def scan() -> None:
                nonlocal count
                for page in dataset.scan():
                    count += len(page)

            rounds.append(seconds(scan))
            if count != rows:
                raise AssertionError(f"the scan gave {count:,} of {rows:,} rows")
            progress(done)
    return Answer("scan", f"scan of {rows:,} rows", 10, _per_second("rows", rows, rounds[1:]), at_least=True)


def _per_second(name: str, rows: int, spent: Iterable[float]) -> Series:
    unit = "M rows/s" if name == "rows" else "M entries/s"
    return Series(name, unit, tuple(rows / each / 1e6 for each in spent))
