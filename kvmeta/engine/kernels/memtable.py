"""The memtable's inner loops: append rows, publish them in open-addressing slots, pick out a hash range.

One writer appends under a lock; readers take none. A row is complete before its slot names it (release
fence), and a row is never changed once named, so a reader sees either the older or the newer row of an ID,
whole.
"""

import numpy as np

from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_BYTES, ROW_WORDS, VERSION
from kvmeta.engine.kernels.memory import (
    load_u32,
    load_u64,
    njit,
    prefetch,
    release_fence,
    store_u32,
)

U = np.uint64
_ROW, _AHEAD = U(ROW_BYTES), 16


@njit
def insert(table, slots, mask, count, rows):
    """Append `rows` to `table` (u8[capacity, 6]) from row `count` on and publish each.

    `slots` is u4[mask + 1], a row number + 1 or 0 = empty. An ID's slot moves to the new row unless the row
    it names has a larger version.
    """
    n = len(rows)
    for i in range(n):
        for w in range(ROW_WORDS):
            table[count + i, w] = rows[i, w]
    release_fence()
    base = U(slots.ctypes.data)
    for i in range(n):
        if i + _AHEAD < n:
            prefetch(base + (rows[i + _AHEAD, LOW] & mask) * U(4))
        high, low = rows[i, HIGH], rows[i, LOW]
        slot = low & mask
        while True:
            held = load_u32(base + slot * U(4))
            if held == 0:
                break
            if table[held - 1, HIGH] == high and table[held - 1, LOW] == low:
                break
            slot = (slot + U(1)) & mask
        if held == 0 or table[held - 1, VERSION] <= rows[i, VERSION]:
            store_u32(base + slot * U(4), np.uint32(count + i + 1))


@njit
def find(rows_at, slots_at, mask, high, low):
    """Return the address of the row of a mixed ID, or 0."""
    slot = low & mask
    while True:
        held = load_u32(slots_at + slot * U(4))
        if held == 0:
            return U(0)
        row = rows_at + U(held - 1) * _ROW
        if load_u64(row) == high and load_u64(row + U(8)) == low:
            return row
        slot = (slot + U(1)) & mask


@njit
def select_range(table, count, first, last, out):
    """Copy the rows among table[:count] with first <= high half <= last to `out`; return how many.

    `out` may be too short: what does not fit is counted but not copied.
    """
    m = 0
    for i in range(count):
        high = table[i, HIGH]
        if first <= high and high <= last:
            if m < len(out):
                for w in range(ROW_WORDS):
                    out[m, w] = table[i, w]
            m += 1
    return m
