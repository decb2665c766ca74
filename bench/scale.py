"""Growth: what a lookup costs as the store grows, warm and cold: `python -m bench.scale --quick`, `--full`.

For each size, loaded in bulk and kept below the data directory:

    warm     lookups in process and over gRPC, every page in memory; all sizes asked in turn
    cold     no page in memory: lookups, device reads, fio at the same queue depth in the same rounds
    mixed    a store larger than memory: what fits stays, the rest is read
    puts     into a copy of it (segments hard-linked): latency while it merges, bytes written
    rest     memory, disk, opening cold and warm

Each part is kept when it is done, so an interrupted run goes on where it stopped; a whole one begins anew.
A size that the disk has no room for is left out, with a line.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import kvmeta
from bench import engine, footprint, report, servers
from bench.asking import PIPELINED, Asker, Case
from bench.built import disk_bytes
from bench.churn import puts
from bench.cold import cold, mixed
from bench.lookups import Subject
from bench.parts import Parts
from bench.stores import Stores
from bench.systems.ours import KvmetaClient
from bench.table import Answer, Series, ratio
from bench.timing import Progress
from bench.workers import Worker
from bench.workloads import Catalogue, Queries

_ROW_BYTES = 31
_MEMORY_SHARE = 0.6
"""Of this machine's memory: what all stores that are asked warm may take together."""
_REMOTE_CASE = Case(batch_rows=16_384)
_REMOTE_WAYS = (PIPELINED, "8 threads")


@dataclass(frozen=True)
class Sizes:
    """How much of everything one form takes."""

    rows: int
    """Of the largest store."""
    stores: tuple[int, ...]
    from_rows: int
    """Growth over gRPC is counted from the store of this size."""
    local_from_rows: int
    """Growth in process."""
    to_rows: int
    """And to the store of this size, whose footprint is judged."""
    warm_rounds: int
    warm_batches: int
    remote_s: float
    cold_rounds: int
    cold_ids: int
    fio_s: float
    put_rows_least: int
    put_rows_most: int


FORMS = {
    "tiny": Sizes(
        rows=20_000, stores=(5_000, 20_000), from_rows=5_000, local_from_rows=5_000, to_rows=20_000,
        warm_rounds=1, warm_batches=8, remote_s=0.05, cold_rounds=1, cold_ids=4096, fio_s=0.5,
        put_rows_least=50_000, put_rows_most=50_000,
    ),
    "quick": Sizes(
        rows=10_000_000, stores=(1_000_000, 4_000_000, 10_000_000), from_rows=1_000_000,
        local_from_rows=4_000_000, to_rows=10_000_000, warm_rounds=5, warm_batches=64, remote_s=0.3,
        cold_rounds=3, cold_ids=1 << 16, fio_s=2, put_rows_least=10_000_000, put_rows_most=10_000_000,
    ),
    "full": Sizes(
        rows=1_000_000_000,
        stores=(1_000_000, 4_000_000, 10_000_000, 100_000_000, 300_000_000, 1_000_000_000),
        from_rows=1_000_000, local_from_rows=4_000_000, to_rows=300_000_000, warm_rounds=9, warm_batches=128,
        remote_s=0.5, cold_rounds=3, cold_ids=1 << 18, fio_s=3, put_rows_least=12_000_000,
        put_rows_most=48_000_000,
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form of the benchmark; return the exit status."""
    return report.run("scale", FORMS, _measure, arguments, sharing="; over gRPC server and client share them")


def _measure(form: str, sizes: Sizes, data: Path) -> Iterator[Answer]:
    parts = Parts(data, f"scale-{form}", sizes)
    fitting = [rows for rows in sizes.stores if has_room(rows, data)]
    stores = {rows: stores_of(rows, data) for rows in fitting}
    for each in stores.values():
        each.big()
    os.sync()  # the writing back of new stores is no part of what follows
    paths = {rows: each.big() for rows, each in stores.items()}
    warm_rows = warm_sizes(fitting)
    parts_of: dict[int, dict[str, Any]] = {}
    warm = parts.part("warm", lambda: _warm_local({rows: paths[rows] for rows in warm_rows}, sizes))
    remote = parts.part("remote", lambda: _warm_remote({rows: paths[rows] for rows in warm_rows}, sizes))
    for rows in fitting:
        of = parts_of[rows] = {}
        of["cold"] = parts.part(f"cold-{rows}", lambda rows=rows: cold(paths[rows], rows, sizes))
        of["rest"] = parts.part(f"rest-{rows}", lambda rows=rows: _rest(stores[rows], rows))
        if rows in warm_rows:
            of["puts"] = parts.part(f"puts-{rows}", lambda rows=rows: puts(stores[rows], rows, sizes))
        else:
            of["mixed"] = parts.part(f"mixed-{rows}", lambda rows=rows: mixed(paths[rows], rows, sizes))
    for rows in fitting:
        yield _told(rows, warm.get(str(rows)), remote.get(str(rows)), parts_of[rows])
    for rows in set(sizes.stores) - set(fitting):
        print(f"  {rows:,} entries: left out, the disk has no room for them", file=sys.stderr)
    yield from _judged(sizes, warm, remote, parts_of)
    parts.done()


def stores_of(rows: int, data: Path) -> Stores:
    return Stores(data, replace(engine.FORMS["quick"], rows=rows))


def has_room(rows: int, data: Path) -> bool:
    """Return whether a store of `rows` is there or can be built, a third of it held twice meanwhile."""
    if (data / f"big-{rows}" / "built.json").exists():
        return True
    data.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(data).free > rows * _ROW_BYTES * 1.5 + (2 << 30)


def warm_sizes(fitting: Sequence[int]) -> list[int]:
    """Return the sizes that fit into memory, all at once."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _MEMORY_SHARE
    kept: list[int] = []
    for rows in sorted(fitting):
        if (sum(kept) + rows) * _ROW_BYTES < memory:
            kept.append(rows)
    return kept


def _warm_local(paths: dict[int, Path], sizes: Sizes) -> dict[str, Any]:
    """Ask all stores in turn, in one process; return ns an ID of each round by rows."""
    random = np.random.default_rng(7)
    with ExitStack() as stack:
        subjects = {}
        for rows, path in paths.items():
            dataset = stack.enter_context(kvmeta.open(path)).dataset()
            with Progress(f"warming {rows:,} rows"):
                for _ in dataset.scan():
                    pass
            queries = Queries(Catalogue(), rows)
            subjects[rows] = Subject(f"{rows:,} rows", dataset.lookup, queries, sizes.warm_batches)
        with Progress("warm lookups", sizes.warm_rounds) as progress:
            for turn in range(sizes.warm_rounds):
                for subject in subjects.values():
                    subject.round(random, 4096)
                progress(turn + 1)
        return {str(rows): subject.ns for rows, subject in subjects.items()}


def _warm_remote(paths: dict[int, Path], sizes: Sizes) -> dict[str, Any]:
    """Ask servers of all stores in turn, each its best way; return ns an ID of each round by rows."""
    with ExitStack() as stack:
        askers = {}
        for rows, path in paths.items():
            server = stack.enter_context(servers.Kvmeta(path))
            asker = stack.enter_context(Worker(Asker, KvmetaClient, server.target, Catalogue(), rows))
            with Progress(f"warming a server of {rows:,} rows"):
                asker.call("warm")
            askers[rows] = asker
        took: dict[int, dict[str, list[float]]] = {rows: {way: [] for way in _REMOTE_WAYS} for rows in paths}
        with Progress("warm lookups over gRPC", sizes.warm_rounds) as progress:
            for turn in range(sizes.warm_rounds):
                for way in _REMOTE_WAYS:
                    for rows, asker in askers.items():
                        rate = asker.call("lookups", _REMOTE_CASE, way, sizes.remote_s).rate
                        took[rows][way].append(1e3 / rate)
                progress(turn + 1)
    return {str(rows): min(ways.values(), key=statistics.median) for rows, ways in took.items()}


def _rest(stores: Stores, rows: int) -> dict[str, Any]:
    """Measure memory, disk and opening."""
    path = stores.big()
    memtable_rows = stores.sizes.memtable_rows
    empty = footprint.child(stores.scratch(), 0, 1, memtable_rows)
    full = footprint.child(path, rows, 1, memtable_rows)
    shutil.rmtree(stores.scratch(), ignore_errors=True)
    opened = []
    for _ in range(5):
        start = time.perf_counter()
        with kvmeta.open(path, mode="r") as store:
            opened.append(time.perf_counter() - start)
            dataset = store.stats().datasets[0]
    return {
        "memory": max(0.0, (full["anonymous_bytes"] - empty["anonymous_bytes"]) / rows),
        "tables": full["table_bytes"] / rows,
        "disk": dataset.disk_bytes / rows,
        "files": disk_bytes(path) / rows,
        "opened_s": opened,
        "build_s": stores.build_s(),
    }


def _told(rows: int, warm: list[float] | None, remote: list[float] | None, of: dict[str, Any]) -> Answer:
    """Return everything measured of a size."""
    rest, pages, put = of["rest"], of["cold"], of.get("puts")
    beside = []
    if warm and remote:
        beside += [_series("warm, in process", "ns/ID", warm), _series("warm, over gRPC", "ns/ID", remote)]
    for size, rounds in pages["rounds"].items():
        name = f"cold, batches of {int(size):,}"
        beside += [
            _series(name, "k IDs/s", [each["ids_s"] / 1e3 for each in rounds]),
            _series(f"{name}: device reads", "/ID", [each["reads_id"] for each in rounds]),
            _series(f"{name}: device reads", "k/s", [each["reads_s"] / 1e3 for each in rounds]),
            _series(f"{name}: in flight", "", [each["depth"] for each in rounds]),
        ]
        if pages["fio"][size]:
            beside.append(_series(f"fio at that depth, {name}", "k/s", [x / 1e3 for x in pages["fio"][size]]))
    if "mixed" in of:
        rounds = of["mixed"]["rounds"]
        beside += [
            _series("mixed", "k IDs/s", [each["ids_s"] / 1e3 for each in rounds]),
            _series("mixed: device reads", "/ID", [each["reads_id"] for each in rounds]),
        ]
    beside += [
        _series("memory", "B/entry", [rest["memory"]]),
        _series("directories and filters, mapped", "B/entry", [rest["tables"]]),
        _series("disk", "B/entry", [rest["disk"]]),
        _series("open, cold", "s", pages["opened_s"]),
        _series("open, warm", "s", rest["opened_s"]),
        _series("bulk load and compaction", "M entries/s", [rows / rest["build_s"] / 1e6]),
    ]
    if put:
        beside += [
            _series("entries put", "M", [put["rows"] / 1e6]),
            _series("put of 4,096 while merging, p50", "ms", [put["p50_ms"]]),
            _series("put of 4,096 while merging, p99", "ms", [put["p99_ms"]]),
            _series("put of 4,096 while merging, largest", "ms", [put["largest_ms"]]),
            _series("puts", "M entries/s", [put["rows"] / put["spent_s"] / 1e6]),
            _series("puts, merges waited for", "M entries/s",
                    [put["rows"] / (put["spent_s"] + put["settling_s"]) / 1e6]),
            _series("bytes written for each byte put", "x", [put["written"]]),
        ]  # fmt: skip
    return Answer(f"rows-{rows}", f"{rows:,} entries", None, beside[0], beside=beside[1:], judged=False)


def _judged(
    sizes: Sizes, warm: dict[str, Any], remote: dict[str, Any], parts_of: dict[int, dict[str, Any]]
) -> Iterator[Answer]:
    """Judge growth, and the footprint and cold lookups of the size `to_rows`."""
    for key, name, took, start in (
        ("growth-remote", "over gRPC", remote, sizes.from_rows),
        ("growth-local", "in process", warm, sizes.local_from_rows),
    ):
        if str(sizes.to_rows) in took:
            small = _series(f"{start:,} rows", "ns/ID", took[str(start)])
            large = _series(f"{sizes.to_rows:,} rows", "ns/ID", took[str(sizes.to_rows)])
            question = f"warm lookup {name}: cost at {sizes.to_rows:,} rows against {start:,}"
            steepness = _series("slope of the log-log line over all sizes", "", [slope(took)])
            yield Answer(key, question, 2, ratio("times", large, small), beside=[small, large, steepness])
    of = parts_of.get(sizes.to_rows)
    if of is None:
        return
    rounds = of["cold"]["rounds"]["4096"]
    of_rows = f"{sizes.to_rows:,} rows"
    reads = _series("reads", "/ID", [each["reads_id"] for each in rounds])
    yield Answer("cold-reads", f"device reads of a cold lookup, {of_rows}", 1.1, reads)
    fio = of["cold"]["fio"]["4096"]
    if fio:
        share = [each["reads_s"] / most * 100 for each, most in zip(rounds, fio, strict=True)]
        yield Answer(
            "cold-share", f"cold reads a second against fio's at the same queue depth, {of_rows}", 70,
            _series("share", "%", share), at_least=True,
        )  # fmt: skip
    yield Answer("memory", f"memory, {of_rows}", 0.3, _series("memory", "B/entry", [of["rest"]["memory"]]))
    yield Answer("disk", f"disk, {of_rows}", 36, _series("disk", "B/entry", [of["rest"]["disk"]]))
    merging = {rows: each["puts"] for rows, each in parts_of.items() if each.get("puts", {}).get("p50_ms")}
    if merging:
        worst = {rows: each["p99_ms"] / each["p50_ms"] for rows, each in merging.items()}
        yield Answer(
            "put-p99", "put p99 during merges against its median, the worst size", 10,
            _series("p99 against p50", "x", [max(worst.values())]),
            beside=[_series(f"{rows:,} rows", "x", [times]) for rows, times in worst.items()],
        )  # fmt: skip


def slope(took: dict[str, list[float]]) -> float:
    """Return the exponent of cost against rows: 0 where it does not grow, 1 where it grows alike."""
    rows = [math.log(int(each)) for each in took]
    costs = [math.log(statistics.median(each)) for each in took.values()]
    return statistics.linear_regression(rows, costs).slope


def _series(name: str, unit: str, rounds: Sequence[float]) -> Series:
    return Series(name, unit, tuple(rounds))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped, too
    sys.exit(main())
