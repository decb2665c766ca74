"""Merging rows: one row an ID, the largest version; and the scan's last step from rows to columns."""

import numpy as np

from kvmeta.engine.kernels.hashing import unmix_one
from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION, WORD3, WORD4, WORD5
from kvmeta.engine.kernels.memory import byte_swap, njit
from kvmeta.version import MOVE_BITS, TOMBSTONE

U = np.uint64
_TOMBSTONE, _MOVE_BITS = U(TOMBSTONE), U(MOVE_BITS)
ACCEPTED, STALE, REFUSED = np.uint8(0), np.uint8(1), np.uint8(2)
"""An apply's outcomes: held now, something newer is held, too old for what was promised."""


@njit
def _order(a, i, a_first, b, j, b_first):
    """Compare the bytes of two locations, 3 words from a[i, a_first] and from b[j, b_first] on: -1, 0, 1."""
    for w in range(3):
        left, right = byte_swap(a[i, a_first + w]), byte_swap(b[j, b_first + w])
        if left != right:
            return 1 if left > right else -1
    return 0


@njit
def _larger(rows, a, b):
    """Return whether row a wins over row b of the same ID: larger version, then larger location bytes."""
    if rows[a, VERSION] != rows[b, VERSION]:
        return rows[a, VERSION] > rows[b, VERSION]
    return _order(rows, a, WORD3, rows, b, WORD3) > 0


@njit
def weigh(rows, versions, locations, promised, outcome, news):
    """Weigh `rows` (u8[n, 6]) against what is held of their IDs: `versions` (u8[n]), `locations` (u8[n, 3]).

    Writes to outcome (u1[n]) ACCEPTED where a row wins or is what is held, STALE where what is held wins,
    REFUSED where it would win and has a version up to `promised` (u8[n]), unless it moves what is held; and
    to news (bool[n]) whether it is accepted and not yet held.
    """
    for i in range(len(rows)):
        version, held = rows[i, VERSION], versions[i]
        outcome[i], news[i] = ACCEPTED, False
        if version < held:
            outcome[i] = STALE
        elif version > held:
            if version <= promised[i] and version >> _MOVE_BITS != held >> _MOVE_BITS:
                outcome[i] = REFUSED
            else:
                news[i] = True
        else:
            order = _order(rows, i, WORD3, locations, i, 0)
            news[i] = order > 0
            if order < 0:
                outcome[i] = STALE


@njit
def _sink(highs, lows, stretches, live, high, low, stretch):
    """Put a stretch at the top of the heap and let it sink: the smallest ID is on top.

    The heap is three columns, the ID at each stretch's head and the stretch, so that sinking touches no row.
    """
    at = U(0)
    while True:
        child = U(2) * at + U(1)
        if child >= live:
            break
        other = child + U(1)
        if other < live and (
            highs[other] < highs[child] or (highs[other] == highs[child] and lows[other] < lows[child])
        ):
            child = other
        if high < highs[child] or (high == highs[child] and low <= lows[child]):
            break
        highs[at], lows[at], stretches[at] = highs[child], lows[child], stretches[child]
        at = child
    highs[at], lows[at], stretches[at] = high, low, stretch


@njit
def _step(rows, heads, ends, highs, lows, stretches, live):
    """Move the stretch on top to its next row; return how many stretches are left."""
    stretch = stretches[0]
    row = heads[stretch] + U(1)
    heads[stretch] = row
    if row < ends[stretch]:
        _sink(highs, lows, stretches, live, rows[row, HIGH], rows[row, LOW], stretch)
        return live
    live -= U(1)
    if live > U(0):
        _sink(highs, lows, stretches, live, highs[live], lows[live], stretches[live])
    return live


@njit
def _take(rows, row, out, m, purge, expired):
    """Copy a row to out[m] unless it may be left out; return the rows then written."""
    version = rows[row, VERSION]
    if version < expired or (version & _TOMBSTONE and version < purge):
        return m
    for w in range(ROW_WORDS):
        out[m, w] = rows[row, w]
    return m + U(1)


@njit
def merge(rows, heads, ends, purge, expired, out):
    """Merge sorted stretches of `rows` (u8[n, 6]) to `out`; return the rows written.

    Stretch k is rows[heads[k]:ends[k]] (both u8[k]), each with distinct IDs in order; `heads` is consumed.
    Tombstones with a version below `purge` and every row with one below `expired` are left out.
    """
    m, live = U(0), U(0)
    highs, lows = np.empty(len(heads), np.uint64), np.empty(len(heads), np.uint64)
    stretches = np.empty(len(heads), np.uint64)
    for k in range(len(heads)):
        if heads[k] < ends[k]:  # a heap grows at its end, from where the new one rises
            high, low = rows[heads[k], HIGH], rows[heads[k], LOW]
            at = live
            live += U(1)
            while at > U(0):
                parent = (at - U(1)) // U(2)
                if highs[parent] < high or (highs[parent] == high and lows[parent] <= low):
                    break
                highs[at], lows[at], stretches[at] = highs[parent], lows[parent], stretches[parent]
                at = parent
            highs[at], lows[at], stretches[at] = high, low, U(k)
    while live > U(1):
        high, low = highs[0], lows[0]
        winner = heads[stretches[0]]
        live = _step(rows, heads, ends, highs, lows, stretches, live)
        while live > U(0) and highs[0] == high and lows[0] == low:  # other stretches at the same ID
            row = heads[stretches[0]]
            if _larger(rows, row, winner):
                winner = row
            live = _step(rows, heads, ends, highs, lows, stretches, live)
        m = _take(rows, winner, out, m, purge, expired)
    if live == U(1):
        stretch = stretches[0]
        row = heads[stretch]
        while row < ends[stretch]:
            m = _take(rows, row, out, m, purge, expired)
            row += U(1)
    return np.int64(m)


@njit
def emit(rows, after_high, after_low, any_after, tag, any_tag, expired, keys, ids, locations, versions):
    """Write the live ones of sorted `rows` above a mixed ID as columns; return (written, rows consumed).

    Stops where `ids` is full. `ids` is u8[n, 2] of raw ID bytes, `locations` u8[n, 3]. With `any_tag` false
    only rows with `tag` pass.
    """
    m = 0
    for i in range(len(rows)):
        high, low = rows[i, HIGH], rows[i, LOW]
        if not any_after and (high < after_high or (high == after_high and low <= after_low)):
            continue
        version = rows[i, VERSION]
        if version & _TOMBSTONE or version < expired:
            continue
        if not any_tag and rows[i, WORD5] >> U(32) != tag:
            continue
        if m == len(ids):
            return m, i
        high, low = unmix_one(high, low, keys)
        ids[m, 0], ids[m, 1] = byte_swap(high), byte_swap(low)
        versions[m] = version
        locations[m, 0], locations[m, 1], locations[m, 2] = rows[i, WORD3], rows[i, WORD4], rows[i, WORD5]
        m += 1
    return m, len(rows)
