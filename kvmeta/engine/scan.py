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


class Walk:
    """A page of a scan while it is filled, window by window, whatever the windows' rows come from.

    `after` is the cursor that the page before ended with; `high` is where the next window starts.
    """

    def __init__(
        self,
        over: Stretch,
        after: bytes | None,
        rows_max: int,
        tag: int | None,
        keys: NDArray[np.uint64],
        expired: int,
    ) -> None:
        self._over = over
        self._rows_max = rows_max
        self._tag = tag
        self._keys = keys
        self._expired = np.uint64(expired)
        self.high, self._low, self._fresh = over.first, 0, True  # `fresh`: nothing of `high` is seen yet
        if after is not None:
            high, low = int.from_bytes(after[:8], "big"), int.from_bytes(after[8:], "big")
            if high >= over.first:
                self.high, self._low, self._fresh = high, low, False
                if low == HASH_MAX and high < over.last:  # all of it is seen
                    self.high, self._low, self._fresh = high + 1, 0, True
        self._ids = np.empty((rows_max, 2), np.uint64)
        self._locations, self._versions = np.empty((rows_max, 3), np.uint64), np.empty(rows_max, np.uint64)
        self._written = self._examined = 0
        self.goes_on = self.high <= over.last

    @property
    def wanted(self) -> int:
        """Return how many entries the page still has room for."""
        return self._rows_max - self._written

    def take(self, rows: NDArray[np.uint64], until: int) -> None:
        """Take over the merged rows (u8[n, 6]) of the window from `high` to `until`."""
        m, consumed = kernels.emit(
            rows, np.uint64(self.high), np.uint64(self._low), self._fresh, np.uint64(self._tag or 0),
            self._tag is None, self._expired, self._keys, self._ids[self._written :],
            self._locations[self._written :], self._versions[self._written :],
        )  # fmt: skip
        self._written += m
        self._examined += len(rows)
        if consumed < len(rows):
            self.high, self._low = (int(half) for half in rows[consumed - 1, :2])
            self._fresh = self.goes_on = False
            return
        self.high, self._low, self._fresh = until, HASH_MAX, False
        self.goes_on = until < self._over.last and self.wanted > 0 and self._examined < EXAMINED_ROWS_MAX
        if self.goes_on:
            self.high, self._low, self._fresh = until + 1, 0, True

    def columns(self) -> Columns:
        """Return the page as it is; the next one continues behind it."""
        high, low, over = self.high, self._low, self._over
        if self._fresh and high > over.first:  # stopped between two windows
            high, low = high - 1, HASH_MAX
        done = high > over.last or (high == over.last and low == HASH_MAX)
        cursor = high.to_bytes(8, "big") + low.to_bytes(8, "big")
        n = self._written
        return Columns(self._ids[:n], self._locations[:n], self._versions[:n], cursor, done)


def page(
    tree: Tree, keys: NDArray[np.uint64], over: Stretch, after: bytes | None, rows_max: int, tag: int | None
) -> Columns:
    """Return the next page after cursor `after`: up to `rows_max` live entries, with `tag` if given.

    It ends after `EXAMINED_ROWS_MAX` rows, so it may be empty and not the last.
    """
    expired = tree.expired()
    walk = Walk(over, after, rows_max, tag, keys, expired)
    while walk.goes_on:
        view = tree.view
        last = window_end(view, walk.high, over.last, max(1024, walk.wanted))
        walk.take(merged_rows(view, walk.high, last, expired=expired), last)
    return walk.columns()
