"""Scanning a tree in hash order, page by page. No snapshot is held between pages: the cursor is a mixed ID.

Every ID present throughout is seen exactly once; one put or deleted meanwhile may or may not be seen. Because
mixed IDs are uniform, a shard or a sample is simply a stretch of the hash order.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import merge as kernels
from kvmeta.engine.tree import Tree
from kvmeta.engine.window import HASH_MAX, merged_rows, window_end

EXAMINED_ROWS_MAX = 4 << 20
"""Rows a page looks at, whatever its filter lets through: a tenth of a second, so that a call ends."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of the hash order: high halves from `first` to `last`, both inclusive."""

    first: int
    last: int


@dataclass(frozen=True)
class Columns:
    """A scanned page: ids u8[n, 2] (raw bytes), locations u8[n, 3], versions u8[n]; `cursor` continues it."""

    ids: NDArray[np.uint64]
    locations: NDArray[np.uint64]
    versions: NDArray[np.uint64]
    cursor: bytes
    done: bool


def stretch(shard: tuple[int, int], sample: float) -> Stretch:
    """Return the stretch of shard i of n, and of that the first `sample` (a share in (0, 1])."""
    index, count = shard
    first = (index << 64) // count
    end = ((index + 1) << 64) // count
    width = int((end - first) * Fraction(sample))  # exact: a float's 53 bits would let stretches overlap
    return Stretch(first, first + max(1, width) - 1)


def page(
    tree: Tree, keys: NDArray[np.uint64], over: Stretch, after: bytes | None, rows_max: int, tag: int | None
) -> Columns:
    """Return the next page after cursor `after`: up to `rows_max` live entries, with `tag` if given.

    It ends after `EXAMINED_ROWS_MAX` rows, so it may be empty and not the last.
    """
    high, low = over.first, 0
    fresh = after is None
    if after is not None:
        high, low = int.from_bytes(after[:8], "big"), int.from_bytes(after[8:], "big")
        if high < over.first:
            high, low, fresh = over.first, 0, True
    ids, locations = np.empty((rows_max, 2), np.uint64), np.empty((rows_max, 3), np.uint64)
    versions = np.empty(rows_max, np.uint64)
    expired = tree.expired()
    written = examined = 0
    while high <= over.last:
        view = tree.view
        last = window_end(view, high, over.last, max(1024, rows_max - written))
        rows = merged_rows(view, high, last, expired=expired)
        m, consumed = kernels.emit(
            rows, np.uint64(high), np.uint64(low), fresh, np.uint64(tag or 0), tag is None,
            np.uint64(expired), keys, ids[written:], locations[written:], versions[written:],
        )  # fmt: skip
        written += m
        examined += len(rows)
        if consumed < len(rows):
            high, low = (int(half) for half in rows[consumed - 1, :2])
            break
        high, low, fresh = last, HASH_MAX, False
        if last == over.last:
            break
        if written == rows_max or examined >= EXAMINED_ROWS_MAX:
            break
        high, low, fresh = last + 1, 0, True
    done = high > over.last or (high == over.last and low == HASH_MAX)
    cursor = high.to_bytes(8, "big") + low.to_bytes(8, "big")
    return Columns(ids[:written], locations[:written], versions[:written], cursor, done)
