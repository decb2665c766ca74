"""Small stores that do much: with tiny limits a few thousand rows go through flushes and merges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions

TINY = EngineOptions(
    batch_rows_max=1024,
    group_rows_max=2048,
    memtable_rows_max=2048,
    segment_bytes_max=64 << 10,
    merge_step_rows=512,
    fan_out=3,
    bottom_ratio=4,
    load_rows_max=4096,
)
MANUAL = replace(TINY, background=False)

Ids = NDArray[np.uint64]


def open_store(path: Path, mode: str = "a", options: EngineOptions = TINY) -> EmbeddedStore:
    """Open a store with tiny limits."""
    store = kvmeta.open(path, mode, options=options)
    assert isinstance(store, EmbeddedStore)
    return store


def ids(first: int, end: int) -> Ids:
    """Return the IDs first, first + 1, …, end - 1."""
    return np.arange(first, end, dtype=np.uint64)


def locations(numbers: Any, mark: int = 0) -> NDArray[np.void]:
    """Return a location for each number; `mark` tells one writing of an ID from another."""
    column = np.asarray(numbers, np.uint64)
    out = np.zeros(len(column), kvmeta.LOCATION)
    out["volume"], out["length"] = 1 + column % 7, 100 + column % 1000
    out["offset"], out["checksum"], out["tag"] = column * 512, (column * 2654435761) & 0xFFFFFFFF, mark
    return out


def put(store: kvmeta.Store, first: int, end: int, mark: int = 0, dataset: str = "default") -> None:
    """Put the IDs [first, end) with `mark`, a memtable's half at a time."""
    for start in range(first, end, 1000):
        some = ids(start, min(end, start + 1000))
        store.dataset(dataset).put(some, locations(some, mark))


def assert_holds(store: kvmeta.Store, first: int, end: int, mark: int = 0, dataset: str = "default") -> None:
    """Assert that every ID of [first, end) is held with `mark`'s location."""
    wanted = ids(first, end)
    hit = store.dataset(dataset).lookup(wanted)
    assert hit.found.all(), f"{int((~hit.found).sum())} of {len(wanted)} acknowledged IDs are absent"
    assert np.array_equal(hit.locations, locations(wanted, mark))
