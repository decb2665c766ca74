"""The stores under test: built once per size below the data directory, used again as long as they are whole.

    big-60000000/built.json    what was built, by which recipe; written last, so a half-built store has none
    big-60000000/store/

big, small, least    compacted catalogues of falling size
upper                big (its segments hard-linked, for they never change), 8 upper runs and a full memtable
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvmeta
from bench.built import built, record
from bench.systems import rocksdb
from bench.timing import Progress
from bench.workloads import RECIPE, Catalogue
from kvmeta.engine.options import EngineOptions

UPPER_RUNS = 8
LOAD_BATCH_ROWS = 65_536
PIECE_ROWS = 500_000_000


@dataclass(frozen=True)
class Sizes:
    """How much of everything one form of the benchmark takes."""

    rows: int
    """Of the big store."""
    small_rows: int
    """Of the store that growth is measured from, and that plain and cuckoo tables hold."""
    least_rows: int | None
    """Of a store that fits the L3 cache; reported, not judged."""
    memtable_rows: int
    """Of a memtable: of the upper runs and of the store that is put to."""
    lookup_rounds: int
    lookup_batches: int
    """Timed batches a round; a quarter as many come before them, untimed."""
    peer_batches: int
    single_calls: int
    put_rounds: int
    put_rows: int
    load_rounds: int
    load_rows: int
    open_rounds: int
    scan_rounds: int
    batch_rows: int = 4096

    @property
    def upper_rows(self) -> int:
        """Return the entries of the store with upper runs and a full memtable."""
        return self.rows + (UPPER_RUNS + 1) * self.memtable_rows


@dataclass(frozen=True)
class Stores:
    """The data directory and what is in it."""

    directory: Path
    sizes: Sizes
    catalogue: Catalogue = field(default_factory=Catalogue)
    _checked: set[str] = field(default_factory=set)

    def big(self) -> Path:
        """Return the path of the big store."""
        return self._compacted("big", self.sizes.rows)

    def small(self) -> Path:
        """Return the path of the small store."""
        return self._compacted("small", self.sizes.small_rows)

    def least(self) -> Path | None:
        """Return the path of the least store, if this form has one."""
        return None if self.sizes.least_rows is None else self._compacted("least", self.sizes.least_rows)

    def upper(self) -> Path:
        """Return the path of the big store's copy with upper runs; open it with `still_options` only."""
        big, sizes = self.big(), self.sizes
        recipe = {"big": record(big.parent)["build"], "memtable_rows": sizes.memtable_rows}

        def build(path: Path) -> None:
            linked_copy(big, path)
            with kvmeta.open(path, options=self.still_options()) as store:
                dataset = store.dataset()
                batch_rows = min(sizes.memtable_rows, LOAD_BATCH_ROWS)
                with Progress("8 upper runs", (UPPER_RUNS + 1) * sizes.memtable_rows) as progress:
                    for run in range(UPPER_RUNS + 1):
                        first = sizes.rows + run * sizes.memtable_rows
                        for batch in self.catalogue.batches(first, sizes.memtable_rows, batch_rows):
                            dataset.put(*batch)
                        if run < UPPER_RUNS:  # the last memtable stays full
                            store.flush()
                        progress((run + 1) * sizes.memtable_rows)

        return self._ensure(f"upper-{sizes.rows}", recipe, build)

    def still_options(self) -> EngineOptions:
        """Return options under which nothing is merged by itself: the upper runs stay as they are."""
        rows = self.sizes.memtable_rows
        return EngineOptions(background=False, memtable_rows_max=rows, batch_rows_max=min(rows, 65_536))

    def put_options(self) -> EngineOptions:
        """Return the options of a store that is put to: flushes and merges happen, in quick forms too."""
        rows = self.sizes.memtable_rows
        return EngineOptions(memtable_rows_max=rows, batch_rows_max=min(rows, 65_536))

    def peer(self, kind: rocksdb.Kind, rows: int) -> Path:
        """Return the path of a RocksDB table of the first `rows` entries; both block kinds share one."""
        name = "block" if kind.startswith("block") else kind

        def build(path: Path) -> None:
            with Progress(f"rocksdict, {name}, {rows:,} rows", rows) as progress:
                batches = self.catalogue.batches(0, rows, LOAD_BATCH_ROWS)
                rocksdb.build(path, kind, rows, progress.counted(batches))

        return self._ensure(f"rocksdict-{name}-{rows}", {}, build)

    def build_s(self) -> float:
        """Return how long building the big store took."""
        return float(record(self.big().parent)["seconds"])

    def scratch(self) -> Path:
        """Return the path of an empty directory, to be made by whoever uses it."""
        path = self.directory / "scratch"
        shutil.rmtree(path, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        return path

    def _compacted(self, name: str, rows: int) -> Path:
        def build(path: Path) -> None:
            # A merge holds its unsorted inputs until its end: in thirds, so that not all is there twice.
            piece = rows if rows < PIECE_ROWS else -(-rows // 3)
            with kvmeta.open(path) as store, Progress(f"{name} store, {rows:,} rows, load", rows) as progress:
                for first in range(0, rows, piece):
                    batches = self.catalogue.batches(first, min(piece, rows - first), LOAD_BATCH_ROWS)
                    store.dataset().load(progress.counted(batches))
                    store.compact(progress=progress)

        return self._ensure(f"{name}-{rows}", {}, build)

    def _ensure(self, name: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the path of store `name`, built now unless a whole one of the same recipe is there."""
        directory = self.directory / name
        if name in self._checked:  # it may be open by now
            return directory / "store"
        self._checked.add(name)
        recipe = {**recipe, "recipe": RECIPE, "seed": self.catalogue.seed, "kvmeta": kvmeta.__version__}
        if not (name.startswith("rocksdict") or _opens(directory / "store")):
            shutil.rmtree(directory, ignore_errors=True)
        return built(directory, recipe, build)


def _opens(path: Path) -> bool:
    """Return whether this version of the engine reads the store."""
    try:
        kvmeta.open(path, mode="r").close()
    except kvmeta.KvmetaError:
        return False
    return True


def linked_copy(source: Path, target: Path) -> None:
    """Copy a closed store: segments as hard links, the rest byte by byte."""
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(parents=True)
        elif file.suffix == ".seg":
            os.link(file, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
