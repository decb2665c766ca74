"""Sorting rows by mixed ID: two radix passes over the bits that differ most, then insertion.

Mixed IDs are uniform, so after radix passes over the top 22 bits nearly every row is in place and the
insertion pass is linear. Stable: of two rows with one ID the later stays later.
"""

import numpy as np

from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION
from kvmeta.engine.kernels.memory import njit, prefetch

U = np.uint64
_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS


@njit
def _pass(keys, order, shift, keys_out, order_out):
    counts = np.zeros(_DIGITS + 1, np.int64)
    for i in range(len(keys)):
        counts[((keys[i] >> U(shift)) & U(_DIGITS - 1)) + U(1)] += 1
    for d in range(_DIGITS):
        counts[d + 1] += counts[d]
    for i in range(len(keys)):
        digit = (keys[i] >> U(shift)) & U(_DIGITS - 1)
        at = counts[digit]
        counts[digit] = at + 1
        keys_out[at] = keys[i]
        order_out[at] = order[i]


@njit
def sort_order(rows):
    """Return the u4[n] order that sorts `rows` (u8[n, >= 2]) by mixed ID, stable."""
    n = len(rows)
    order = np.empty(n, np.uint32)
    keys = np.empty(n, np.uint64)
    low, high = U(0xFFFFFFFFFFFFFFFF), U(0)
    for i in range(n):
        keys[i] = rows[i, HIGH]
        order[i] = i
        low = min(low, keys[i])
        high = max(high, keys[i])
    if n < 2:
        return order
    spread = high - low
    lift = 0  # so that the top bits differ even where all rows lie in a narrow hash range
    while lift < 63 and not spread >> U(63):
        spread <<= U(1)
        lift += 1
    for i in range(n):
        keys[i] = (keys[i] - low) << U(lift)
    keys_2, order_2 = np.empty(n, np.uint64), np.empty(n, np.uint32)
    if n > 2 * _DIGITS:
        _pass(keys, order, 64 - 2 * _DIGIT_BITS, keys_2, order_2)
        _pass(keys_2, order_2, 64 - _DIGIT_BITS, keys, order)
    else:
        _pass(keys, order, 64 - _DIGIT_BITS, keys_2, order_2)
        keys, keys_2 = keys_2, keys
        order, order_2 = order_2, order
    for i in range(1, n):
        key, which = keys[i], order[i]
        j = i - 1
        while j >= 0 and (keys[j] > key or (keys[j] == key and rows[order[j], LOW] > rows[which, LOW])):
            keys[j + 1], order[j + 1] = keys[j], order[j]
            j -= 1
        keys[j + 1], order[j + 1] = key, which
    return order


@njit
def gather_latest(rows, order, out):
    """Write `rows` in `order` to `out`, one row an ID: the largest version, of equal ones the last.

    Return the number of rows written.
    """
    n = len(order)
    base = U(rows.ctypes.data)
    m = 0
    for i in range(n):
        if i + 12 < n:
            prefetch(base + U(order[i + 12]) * U(8 * ROW_WORDS))
        r = order[i]
        same = m > 0 and out[m - 1, HIGH] == rows[r, HIGH] and out[m - 1, LOW] == rows[r, LOW]
        if same:
            if rows[r, VERSION] < out[m - 1, VERSION]:
                continue
            m -= 1
        for w in range(ROW_WORDS):
            out[m, w] = rows[r, w]
        m += 1
    return m


@njit
def winners(rows, last, winner):
    """Set winner[i] (i8[n]) to the first (or last) row with row i's mixed ID; return the number of IDs."""
    n = len(rows)
    bits = 4
    while (1 << bits) < 2 * n:
        bits += 1
    mask = U((1 << bits) - 1)
    slots = np.zeros(1 << bits, np.uint32)
    distinct = 0
    for step in range(n):
        i = n - 1 - step if last else step
        slot = rows[i, LOW] & mask
        winner[i] = i
        while slots[slot]:
            other = slots[slot] - 1
            if rows[other, LOW] == rows[i, LOW] and rows[other, HIGH] == rows[i, HIGH]:
                winner[i] = other
                break
            slot = (slot + U(1)) & mask
        if winner[i] == i:
            slots[slot] = i + 1
            distinct += 1
    return distinct
