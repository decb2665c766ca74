"""Puts into a store that is there already: how long calls take while it merges, how much is written.

The store is a copy whose segments are hard links, for they never change.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

import kvmeta
from bench.proc import io_bytes
from bench.stores import Stores, linked_copy
from bench.timing import Progress
from bench.workers import Worker
from bench.workloads import Catalogue
from kvmeta.embedded import EmbeddedStore

ENTRY_BYTES = 40
"""Of an ID and a location: what a caller hands over."""
_STATS_EVERY = 8


class Putter:
    """A process of its own that puts into a store."""

    def __init__(self, path: Path, first: int) -> None:
        self._store = kvmeta.open(path)
        self._first = first

    def put(self, rows: int) -> dict[str, Any]:
        """Put `rows` fresh entries in batches of 4,096, wait for the merges, and return what that took.

        "merging_s" are the calls made while a merge was under way.
        """
        store, dataset = self._store, self._store.dataset()
        assert isinstance(store, EmbeddedStore)
        merging_s: list[float] = []
        written = io_bytes("write_bytes")
        merging, spent_s = False, 0.0
        batches = Catalogue().batches(self._first, rows, 4096)
        for i, (ids, locations) in enumerate(batches):
            if i % _STATS_EVERY == 0:
                merging = bool(store.stats().datasets[0].merging)
            start = time.perf_counter()
            dataset.put(ids, locations)
            took = time.perf_counter() - start
            spent_s += took
            if merging:
                merging_s.append(took)
        start = time.perf_counter()
        while store.engine.background.step():
            pass
        settling_s = time.perf_counter() - start
        runs = store.stats().datasets[0].runs
        store.close()
        os.sync()
        return {
            "rows": rows, "spent_s": spent_s, "settling_s": settling_s, "runs": runs,
            "merging_calls": len(merging_s),
            "p50_ms": float(np.percentile(merging_s or [0.0], 50) * 1e3),
            "p99_ms": float(np.percentile(merging_s or [0.0], 99) * 1e3),
            "largest_ms": max(merging_s, default=0.0) * 1e3,
            "written": (io_bytes("write_bytes") - written) / (rows * ENTRY_BYTES),
        }  # fmt: skip


def puts(stores: Stores, rows: int, sizes: Any) -> dict[str, Any]:
    """Put into a copy so much that its bottom run is merged at least once, within bounds."""
    path = stores.scratch()
    count = max(sizes.put_rows_least, min(rows // 8 + 4_000_000, sizes.put_rows_most))
    try:
        linked_copy(stores.big(), path)
        with Worker(Putter, path, rows) as putter, Progress(f"puts, {rows:,} rows and {count:,} more"):
            return dict(putter.call("put", count))
    finally:
        shutil.rmtree(path, ignore_errors=True)
