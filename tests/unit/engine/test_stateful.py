"""The engine against a dict, with flush, compact, steps, reopen and kill among its rules."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions

TINY = EngineOptions(
    batch_rows_max=16,
    memtable_rows_max=48,
    segment_bytes_max=16 << 10,
    fan_out=3,
    merge_step_rows=32,
    load_rows_max=64,
    background=False,
)
KEYS = 120
numbers = st.lists(st.integers(0, KEYS - 1), min_size=1, max_size=60)


def copy_still(source: Path, copy: Path) -> None:
    """Copy a directory as it is at one moment: again, while RocksDB's own threads change it meanwhile."""

    def listing() -> list[tuple[Path, int, int]]:
        return sorted((p, p.stat().st_size, p.stat().st_mtime_ns) for p in source.rglob("*"))

    while True:
        try:
            before = listing()
            shutil.copytree(source, copy)
            if listing() == before:
                return
        except (OSError, shutil.Error):
            pass
        shutil.rmtree(copy, ignore_errors=True)


class Catalogue(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="kvmeta-stateful-"))
        self.generation = 0
        self.path = self.root / "0"
        self.store = EmbeddedStore(self.path, options=TINY)
        self.ds = self.store.dataset()
        self.model: dict[int, int] = {}  # number -> offset
        self.next_offset = 1

    def columns(self, keys: list[int]) -> tuple[np.ndarray, np.ndarray]:
        loc = np.zeros(len(keys), kvmeta.LOCATION)
        loc["offset"] = np.arange(self.next_offset, self.next_offset + len(keys))
        self.next_offset += len(keys)
        return kvmeta.ids_from_ints(keys), loc

    @rule(keys=numbers)
    def put(self, keys: list[int]) -> None:
        ids, loc = self.columns(keys)
        self.ds.put(ids, loc)
        self.model.update(zip(keys, loc["offset"].tolist(), strict=True))

    @rule(keys=numbers)
    def delete(self, keys: list[int]) -> None:
        self.ds.delete(kvmeta.ids_from_ints(keys))
        for key in keys:
            self.model.pop(key, None)

    @rule(keys=numbers)
    def insert(self, keys: list[int]) -> None:
        ids, loc = self.columns(keys)
        inserted = self.ds.insert(ids, loc).inserted
        for key, offset, fresh in zip(keys, loc["offset"].tolist(), inserted, strict=True):
            assert fresh == (key not in self.model)
            self.model.setdefault(key, offset)

    @rule(keys=st.lists(st.integers(0, KEYS - 1), min_size=1, max_size=30, unique=True), stale=st.booleans())
    def relocate(self, keys: list[int], stale: bool) -> None:
        ids, loc = self.columns(keys)
        versions = self.ds.lookup(ids).versions
        relocated = self.ds.relocate(ids, loc, versions ^ np.uint64(1 << 30) if stale else versions).relocated
        for key, offset, done in zip(keys, loc["offset"].tolist(), relocated, strict=True):
            assert done == (key in self.model and not stale)
            if done:
                self.model[key] = offset

    @rule(batches=st.lists(numbers, min_size=1, max_size=5))
    def load(self, batches: list[list[int]]) -> None:
        columns = [self.columns(keys) for keys in batches]
        assert self.ds.load(columns) == sum(map(len, batches))
        for keys, (_, loc) in zip(batches, columns, strict=True):
            self.model.update(zip(keys, loc["offset"].tolist(), strict=True))

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule(steps=st.integers(1, 6))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.store.engine.background.step()

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open(self.path)

    @rule()
    def kill(self) -> None:
        """Go on with a copy of the files as they are now: what kill -9 leaves."""
        self.generation += 1
        copy = self.root / str(self.generation)
        copy_still(self.path, copy)
        self.store.close()
        shutil.rmtree(self.path)
        self.open(copy)

    def open(self, path: Path) -> None:
        self.path = path
        self.store = EmbeddedStore(path, options=TINY)
        self.ds = self.store.dataset()

    @rule()
    def verify(self) -> None:
        assert self.store.verify().ok

    @invariant()
    def every_answer_is_the_models(self) -> None:
        if not hasattr(self, "store"):
            return
        hit = self.ds.lookup(kvmeta.ids_from_ints(list(range(KEYS))))
        expected = [self.model.get(key, 0) for key in range(KEYS)]
        assert hit.found.tolist() == [key in self.model for key in range(KEYS)]
        assert hit.locations["offset"].tolist() == expected

    @rule(page_rows=st.integers(1, 50))
    def scan(self, page_rows: int) -> None:
        seen = {}
        for page in self.ds.scan(page_rows=page_rows):
            for key, offset in zip(page.ids, page.locations["offset"].tolist(), strict=True):
                number = int.from_bytes(key.tobytes(), "big")
                assert number not in seen
                seen[number] = offset
        assert seen == self.model

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.root)


TestCatalogue = Catalogue.TestCase
TestCatalogue.pytestmark = [pytest.mark.slow]
TestCatalogue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
