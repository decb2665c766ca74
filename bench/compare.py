"""kvmeta, its peers and the wire's limit side by side: `python -m bench.compare --quick`, `--full`, `--tiny`.

    workloads.py   which entries there are, which are asked for
    systems/       one adapter a system
    asking.py      the client process, the same for all

All systems are up together and asked in turn, round after round; servers and clients share this machine's
cores. Scenes, one after the other:

    hashed                    every case of `CASES`, then opening again, memory, disk
    sequential, paths         the first case on smaller stores of other kinds of IDs
    empty                     puts into empty systems

A scene is kept when it is done, so an interrupted run goes on behind it. A system of which something is
missing is left out, with a line; `make bench-peers-install` installs them. A rate is that of a system's best
way to ask (asking.py); latencies are those of one call at a time.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import report
from bench.asking import ONE, PIPELINED, Asker, Case, Slice, server_bytes
from bench.built import built
from bench.parts import Parts
from bench.systems import lmdb, mooncake, ours, postgres, redis, rocksdb, seaweedfs
from bench.systems.system import System
from bench.table import Answer, Series, ratio
from bench.timing import Progress
from bench.workers import Worker
from bench.workloads import RECIPE, Catalogue, IdKind

SYSTEMS: tuple[System, ...] = (
    ours.Served(), ours.EchoSystem(), redis.RedisSystem(), redis.RedisEverySecond(), redis.RedisAlways(),
    postgres.PostgresSystem(), postgres.InodeSystem(), mooncake.Mooncake(),
    seaweedfs.SeaweedFS(), seaweedfs.SyncedSeaweedFS(),
    ours.Embedded(), lmdb.Lmdb(), rocksdb.BlockCache(), rocksdb.BlockMmap(), rocksdb.Plain(),
    rocksdb.Cuckoo(),
)  # fmt: skip
BASE = Case()
JUDGED = Case(batch_rows=16_384)
CASES = {
    "batches of 4,096": BASE,
    "batches of 256": Case(batch_rows=256),
    "batches of 16,384": JUDGED,
    "half of them absent": Case(present=0.5),
    "all absent": Case(present=0.0),
    "Zipf": Case(access="zipf"),
}
OTHER_KINDS: tuple[IdKind, ...] = ("sequential", "paths")
TARGETS = (
    ("kvmeta", "redis", 8), ("kvmeta", "postgres", 15), ("kvmeta", "mooncake", 8),
    ("kvmeta", "seaweedfs", 50),
    ("kvmeta-embedded", "rocksdb", 8), ("kvmeta-embedded", "rocksdb-mmap", 8),
    ("kvmeta-embedded", "lmdb", 8),
)  # fmt: skip
"""Who shall be how many times as fast as whom."""
REPORTED = (("kvmeta-embedded", "rocksdb-plain"), ("kvmeta-embedded", "rocksdb-cuckoo"))
PUT_ROWS = 4096
Scene = dict[str, dict[str, Any]]
"""What a scene tells of each system, by key; JSON, for it is kept (parts.py)."""
_LOAD_ROWS = 65_536


@dataclass(frozen=True)
class Sizes:
    """How much of everything one form takes."""

    rows: int
    """Of each system, unless it takes fewer (`System.rows_max`)."""
    kind_rows: int
    """Of each system in the scenes of other kinds of IDs."""
    rounds: int
    slice_s: float
    """About how long a system is asked in a round, in each case and way."""
    put_rounds: int
    put_s: float
    open_rounds: int


FORMS = {
    # Every path once, in seconds: what the unit tests run.
    "tiny": Sizes(
        rows=8_192, kind_rows=4_096, rounds=1, slice_s=0.02, put_rounds=1, put_s=0.02, open_rounds=1
    ),
    "quick": Sizes(
        rows=2_000_000, kind_rows=500_000, rounds=3, slice_s=0.2, put_rounds=2, put_s=0.4, open_rounds=1
    ),
    "full": Sizes(
        rows=20_000_000, kind_rows=1_000_000, rounds=3, slice_s=0.4, put_rounds=3, put_s=1.0, open_rounds=3
    ),
}


@dataclass
class Figures:
    """What was measured of one system."""

    system: System
    rows: int = 0
    lookups: dict[tuple[str, str], list[Slice]] = field(default_factory=dict)
    """By case and way, a slice a round."""
    puts: dict[str, list[Slice]] = field(default_factory=dict)
    open_s: list[float] = field(default_factory=list)
    memory_bytes: int | None = None
    empty_bytes: int | None = None
    disk_bytes: int | None = None

    def add(self, told: dict[str, Any]) -> None:
        """Add what a scene tells of the system."""
        for case, way, slices in told.pop("lookups", ()):
            self.lookups[case, way] = [Slice(*each) for each in slices]
        for way, slices in told.pop("puts", ()):
            self.puts[way] = [Slice(*each) for each in slices]
        for name, value in told.items():
            setattr(self, name, value)

    def best(self, case: str) -> Series | None:
        """Return the rates of the best way to ask in a case."""
        ways = {way: slices for (each, way), slices in self.lookups.items() if each == case}
        return _best(case, "M IDs/s", ways)

    def best_put(self) -> Series | None:
        """Return the rates of the best way to put."""
        durable = "durable puts" if self.system.durable else "puts, not durable"
        return _best(durable, "M entries/s", self.puts)


class Instance:
    """A system that is up, and its client process; closed with the stack it was opened on."""

    def __init__(
        self, system: System, directory: Path, catalogue: Catalogue, rows: int, stack: ExitStack
    ) -> None:
        self.system = system
        start = time.perf_counter()
        place = stack.enter_context(system.served(directory))
        self._server = place.server
        self.asker = stack.enter_context(Worker(Asker, system.client, place.address, catalogue, rows))
        stack.callback(self._close)
        self._start = start

    def opened_s(self) -> float:
        """Return the seconds from the start of opening until a first batch was answered rightly."""
        self.asker.call("first")
        return time.perf_counter() - self._start

    def memory_bytes(self) -> int:
        """Return the memory that no file backs: of the servers, or of the client where it is all there is."""
        own = int(self.asker.call("exercise"))
        return own if self._server is None else server_bytes(self._server)

    def _close(self) -> None:
        self.asker.call("close")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form of the comparison; return the exit status."""
    systems, missing = [], []
    for system in SYSTEMS:
        why = system.missing()
        if why:
            missing.append(f"{system.name}: {why}")
        else:
            systems.append(system)
    return report.run(
        "compare", FORMS, partial(_measure, systems), arguments,
        sharing="; servers and clients share the cores", left_out="; ".join(missing),
    )  # fmt: skip


def _measure(systems: Sequence[System], form: str, sizes: Sizes, data: Path) -> Iterator[Answer]:
    readers = [system for system in systems if system.reads]
    writers = [system for system in systems if system.writes]
    parts = Parts(data, f"compare-{form}", sizes)
    scenes: list[tuple[str, Callable[[], Scene]]] = [
        ("hashed", lambda: _lookups("hashed", readers, sizes, data, sizes.rows, CASES)),
        ("opening", lambda: _reopen(readers, sizes, data)),
        *(
            (kind, partial(_lookups, kind, readers, sizes, data, sizes.kind_rows, {f"{kind} IDs": BASE}))
            for kind in OTHER_KINDS
        ),
        ("puts", lambda: _puts(writers, sizes, data)),
    ]
    figures = {system.key: Figures(system) for system in systems}
    for name, play in scenes:
        for key, told in parts.part(name, play).items():
            figures[key].add(told)
    parts.done()
    for each in figures.values():
        yield _told(each)
    for who, whom, times in TARGETS:
        if who in figures and whom in figures:
            yield _judged(figures[who], figures[whom], times)
    for who, whom in REPORTED:
        if who in figures and whom in figures:
            yield _judged(figures[who], figures[whom], None)


def _lookups(
    kind: IdKind, systems: Sequence[System], sizes: Sizes, data: Path, rows: int, cases: dict[str, Case]
) -> Scene:
    """Play a scene of lookups: all systems up, asked in turn."""
    paths = {system.key: _kept(system, kind, rows, data) for system in systems}
    os.sync()  # the writing back of what was just built is no part of what follows
    scene: Scene = {}
    got: dict[tuple[str, str, str], list[Slice]] = defaultdict(list)
    with ExitStack() as stack:
        instances = []
        for system in systems:
            told = scene[system.key] = {}
            instance = _up(system, kind, paths[system.key], rows, stack)
            instances.append(instance)
            if kind == "hashed":
                told["rows"] = _rows(system, rows)
                told["memory_bytes"] = instance.memory_bytes()
                if system.keeps:
                    told["disk_bytes"] = system.disk_bytes(paths[system.key])
        asked = [
            (instance, name, case, way)
            for name, case in cases.items()
            for instance in instances
            for way in _ways(instance.system, PIPELINED)
        ]
        with Progress(f"lookups, {kind} IDs", sizes.rounds * len(asked)) as progress:
            for turn in range(sizes.rounds):
                for i, (instance, name, case, way) in enumerate(asked):
                    system = instance.system
                    fitting = case._replace(batch_rows=system.batch_rows(case.batch_rows))
                    slice_ = instance.asker.call("lookups", fitting, way, sizes.slice_s)
                    got[system.key, name, way].append(slice_)
                    progress(turn * len(asked) + i + 1)
    for (key, name, way), slices in got.items():
        scene[key].setdefault("lookups", []).append((name, way, slices))
    return scene


def _reopen(systems: Sequence[System], sizes: Sizes, data: Path) -> Scene:
    """Open what keeps its entries, files in memory, nothing else running."""
    kept = [system for system in systems if system.keeps]
    scene: Scene = {system.key: {"open_s": []} for system in kept}
    with Progress("opening", sizes.open_rounds * len(kept)) as progress:
        for turn in range(sizes.open_rounds):
            for i, system in enumerate(kept):
                path, rows = _kept(system, "hashed", sizes.rows, data), _rows(system, sizes.rows)
                with ExitStack() as stack:
                    instance = Instance(system, path, Catalogue(), rows, stack)
                    scene[system.key]["open_s"].append(instance.opened_s())
                progress(turn * len(kept) + i + 1)
    return scene


def _puts(systems: Sequence[System], sizes: Sizes, data: Path) -> Scene:
    """Play the scene of puts: all systems up and empty at first."""
    scratch = data / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scene: Scene = {}
    got: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    try:
        with ExitStack() as stack:
            instances = []
            for system in systems:
                directory = scratch / system.key
                directory.mkdir(parents=True)
                instances.append(Instance(system, directory, Catalogue(), 0, stack))
                scene[system.key] = {"empty_bytes": instances[-1].memory_bytes()}
            asked = [(instance, way) for instance in instances for way in _ways(instance.system)]
            with Progress("puts", sizes.put_rounds * len(asked)) as progress:
                for turn in range(sizes.put_rounds):
                    for i, (instance, way) in enumerate(asked):
                        system = instance.system
                        batch_rows = system.batch_rows(PUT_ROWS)
                        got[system.key, way].append(instance.asker.call("puts", batch_rows, way, sizes.put_s))
                        progress(turn * len(asked) + i + 1)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for (key, way), slices in got.items():
        scene[key].setdefault("puts", []).append((way, slices))
    return scene


def _up(system: System, kind: IdKind, path: Path, rows: int, stack: ExitStack) -> Instance:
    """Start a system with its entries, all in memory."""
    instance = Instance(system, path, Catalogue(ids=kind), _rows(system, rows), stack)
    if not system.keeps and system.writes:
        with Progress(f"{system.name}: load"):
            instance.asker.call("load")
    with Progress(f"{system.name}: warming"):
        instance.asker.call("warm")
    instance.asker.call("first")
    return instance


def _kept(system: System, kind: IdKind, rows: int, data: Path) -> Path:
    """Return the directory of what a system keeps of the first `rows` entries, loaded now if need be."""
    rows = _rows(system, rows)
    name = f"{system.key}-{kind}-{rows}"
    if not system.keeps:
        return data / name
    catalogue = Catalogue(ids=kind)
    recipe = {"recipe": RECIPE, "seed": catalogue.seed, "rows": rows, "version": system.version()}

    def build(path: Path) -> None:
        path.mkdir(parents=True)
        with Progress(f"{system.name}, {rows:,} {kind} IDs: load", rows) as progress:
            system.build(path, progress.counted(catalogue.batches(0, rows, min(rows, _LOAD_ROWS))))

    return built(data / name, recipe, build)


def _rows(system: System, rows: int) -> int:
    return min(rows, system.rows_max or rows)


def _ways(system: System, *more: str) -> tuple[str, ...]:
    return (ONE, *more, *(f"{threads} threads" for threads in system.threads))


def _best(name: str, unit: str, ways: dict[str, list[Slice]]) -> Series | None:
    if not ways:
        return None
    series = [_rate(f"{name} ({way})", unit, slices) for way, slices in ways.items()]
    return max(series, key=lambda each: each.median)


def _rate(name: str, unit: str, slices: list[Slice]) -> Series:
    return Series(name, unit, tuple(each.rate for each in slices))


def _told(of: Figures) -> Answer:
    """Return everything measured of a system."""
    system, beside = of.system, []
    for name in dict.fromkeys(case for case, _ in of.lookups):
        best = of.best(name)
        assert best is not None
        beside.append(best)
    for (name, way), slices in of.lookups.items():
        if CASES.get(name) == BASE:
            beside.append(_rate(f"lookups, {way}", "M IDs/s", slices))
            if way == ONE:
                beside += _latencies("lookup", BASE.batch_rows, system, slices)
    put = of.best_put()
    if put is not None:
        beside += [put, *_latencies("put", PUT_ROWS, system, of.puts[ONE])]
    if of.rows:
        beside.append(Series("rows", "M", (of.rows / 1e6,)))
        if of.memory_bytes is not None and of.empty_bytes is not None:
            more = max(0, of.memory_bytes - of.empty_bytes)
            beside.append(Series("memory", "B/entry", (more / of.rows,)))
            beside.append(Series("memory, empty", "MB", (of.empty_bytes / 1e6,)))
        if of.disk_bytes is not None:
            beside.append(Series("disk", "B/entry", (of.disk_bytes / of.rows,)))
    if of.open_s:
        beside.append(Series("open", "s", tuple(of.open_s)))
    note = f"; {system.note}" if system.note else ""
    first = next(each for each in (of.best("batches of 4,096"), put) if each is not None)
    return Answer(
        f"system-{system.key}", f"{system.name} ({system.version()}){note}", None, first,
        at_least=True, beside=[each for each in beside if each is not first], judged=False,
    )  # fmt: skip


def _latencies(what: str, batch_rows: int, system: System, slices: list[Slice]) -> list[Series]:
    name = f"{what} of {system.batch_rows(batch_rows):,}"
    return [
        Series(f"{name}, p50", "ms", tuple(each.p50_ms for each in slices)),
        Series(f"{name}, p99", "ms", tuple(each.p99_ms for each in slices)),
    ]


def _judged(ours_: Figures, theirs: Figures, times: float | None) -> Answer:
    """Return how many times as fast we are, each at its best; batches of 16,384 are judged, others told."""
    pairs = {}
    for name in CASES:
        left, right = ours_.best(name), theirs.best(name)
        assert left is not None
        assert right is not None
        pairs[name] = ratio(f"{name}: {_way(left)} against {_way(right)}", left, right)
    judged = next(name for name, case in CASES.items() if case == JUDGED)
    measured: Any = pairs.pop(judged)
    return Answer(
        f"{ours_.system.key}-{theirs.system.key}",
        f"lookups: {ours_.system.name} against {theirs.system.name}, {judged}", times,
        Series("times", "x", measured.rounds), at_least=True, beside=[measured, *pairs.values()],
        judged=times is not None,
    )  # fmt: skip


def _way(series: Series) -> str:
    return series.name.rpartition("(")[2].rstrip(")")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped, too
    sys.exit(main())
