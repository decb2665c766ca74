"""The memtable: a dataset's newest entries, in memory, appended by one writer and read without a lock."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import memtable as kernels
from kvmeta.engine.kernels import sort
from kvmeta.engine.kernels.layout import (
    HIGH,
    MEM_FIELDS,
    MEM_MASK,
    MEM_ROWS,
    MEM_SLOTS,
    MEM_USED,
    ROW_WORDS,
    VERSION,
)
from kvmeta.engine.wal import Position
from kvmeta.version import VERSION_MAX

Rows = NDArray[np.uint64]
_UNSORTED_MAX = 8192
_PATIENCE = 3


class Memtable:
    """Rows in arrival order, found by open addressing over the low half of their mixed IDs.

    `capacity` rows at most. Memory is touched as it fills. `count`, `lowest` (version) and
    `last_sequence` (of the WAL) change only under the writer's lock.
    """

    def __init__(self, capacity: int) -> None:
        slots = 1 << max(4, (2 * capacity - 1).bit_length())
        self.capacity = capacity
        self.count = 0
        self.lowest = VERSION_MAX
        self.before: Position | None = None  # the WAL position before its first record
        self.appended_before = 0
        self.last_sequence = 0
        self._order: _Order | None = None
        self._asked = 0
        self._rows: Rows = np.empty((capacity, ROW_WORDS), np.uint64)
        self._slots = np.zeros(slots, np.uint32)
        self._used = np.zeros(1, np.uint64)
        self.table = np.empty(MEM_FIELDS, np.uint64)
        self.table[MEM_USED] = self._used.ctypes.data
        self.table[MEM_ROWS] = self._rows.ctypes.data
        self.table[MEM_SLOTS] = self._slots.ctypes.data
        self.table[MEM_MASK] = slots - 1

    @property
    def memory_bytes(self) -> int:
        """Return the bytes of rows and slots in use."""
        return self.count * self._rows.itemsize * ROW_WORDS + self._slots.nbytes

    def insert(self, rows: Rows, before: Position, appended_rows: int = 0) -> None:
        """Append `rows` (u8[n, 6]; they fit) of the WAL record that follows `before`, and publish them.

        `appended_rows`: rows that went into the WAL, of any dataset, before these.
        """
        if self.count + len(rows) > self.capacity:  # the kernel writes where it is told
            raise ValueError(f"{len(rows)} rows do not fit a memtable with {self.count} of {self.capacity}")
        self._used[0] = self.count + len(rows)
        kernels.insert(self._rows, self._slots, self.table[MEM_MASK], self.count, rows)
        self.count += len(rows)
        self.lowest = min(self.lowest, int(rows[:, VERSION].min()))
        if self.before is None:
            self.before, self.appended_before = before, appended_rows
        self.last_sequence = before.sequence + 1

    def grown(self, capacity: int) -> Memtable:
        """Return a memtable of a larger capacity that holds the same; this one stays as it is."""
        grown = Memtable(capacity)
        if self.before is not None:
            grown.insert(self._rows[: self.count], self.before, self.appended_before)
            grown.last_sequence = self.last_sequence
        return grown

    def sorted_rows(self, first_high: int = 0, last_high: int = VERSION_MAX) -> Rows:
        """Return the entries whose high half lies in [first_high, last_high]: sorted, one row an ID."""
        count = self.count
        if first_high == 0 and last_high == VERSION_MAX:
            selected = self._rows[:count]
        else:
            selected = self._range(count, np.uint64(first_high), np.uint64(last_high))
        out = np.empty((len(selected), ROW_WORDS), np.uint64)
        return out[: sort.gather_latest(selected, sort.sort_order(selected), out)]

    def _range(self, count: int, first: np.uint64, last: np.uint64) -> Rows:
        """Return the first `count` rows that lie in a range, in any order.

        The third question since the memtable has grown a lot sorts it; the next ones look that order up, and
        look through what came since. A walk of the whole hash order asks thousands of times.
        """
        order = self._order
        if order is None or count - order.size > max(_UNSORTED_MAX, count // 8):
            self._asked += 1
            if self._asked < _PATIENCE or count < _UNSORTED_MAX:
                return _selected(self._rows[:count], first, last)
            numbers = sort.sort_order(self._rows[:count])
            order = self._order = _Order(count, self._rows[numbers, HIGH], numbers)
            self._asked = 0
        start = np.searchsorted(order.highs, first, side="left")
        end = np.searchsorted(order.highs, last, side="right")
        sorted_part = self._rows[order.numbers[start:end]]
        if count <= order.size:
            return sorted_part
        return np.concatenate([sorted_part, _selected(self._rows[order.size : count], first, last)])


class _Order(NamedTuple):
    """The order of a memtable's first `size` rows: their high halves, sorted, and their numbers."""

    size: int
    highs: NDArray[np.uint64]
    numbers: NDArray[np.uint32]


def _selected(rows: Rows, first: np.uint64, last: np.uint64) -> Rows:
    selected = np.empty((min(len(rows), 4096), ROW_WORDS), np.uint64)
    found = kernels.select_range(rows, len(rows), first, last, selected)
    if found > len(selected):
        selected = np.empty((found, ROW_WORDS), np.uint64)
        found = kernels.select_range(rows, len(rows), first, last, selected)
    return selected[:found]
