"""Merging sorted rows: one row an ID, the largest version; and the scan's last step from rows to columns."""

import numpy as np

from kvmeta.engine.kernels.hashing import finalise
from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION, WORD3, WORD4, WORD5
from kvmeta.engine.kernels.memory import byte_swap, njit

U = np.uint64
_TOMBSTONE = U(0x80)


@njit
def _larger(rows, a, b):
    """Return whether row a wins over row b of the same ID: larger version, then larger location bytes."""
    if rows[a, VERSION] != rows[b, VERSION]:
        return rows[a, VERSION] > rows[b, VERSION]
    for w in (WORD3, WORD4, WORD5):
        if rows[a, w] != rows[b, w]:
            return byte_swap(rows[a, w]) > byte_swap(rows[b, w])
    return False


@njit
def _drop_finished(heads, ends, live):
    k = 0
    while k < live:
        if heads[k] == ends[k]:
            live -= 1
            heads[k], ends[k] = heads[live], ends[live]
        else:
            k += 1
    return live


@njit
def merge(rows, heads, ends, purge, expired, out):
    """Merge sorted stretches of `rows` (u8[n, 6]) to `out`; return (rows written, tombstones among them).

    Stretch k is rows[heads[k]:ends[k]], each with distinct IDs in order; `heads` is consumed. Tombstones with
    a version below `purge` and every row with one below `expired` are left out.
    """
    m, tombstones = 0, 0
    live = _drop_finished(heads, ends, len(heads))
    while live > 0:
        best = 0
        winner = heads[0]
        ties = False
        for k in range(1, live):
            row = heads[k]
            if rows[row, HIGH] < rows[winner, HIGH]:
                best, winner, ties = k, row, False
            elif rows[row, HIGH] == rows[winner, HIGH]:
                if rows[row, LOW] < rows[winner, LOW]:
                    best, winner, ties = k, row, False
                elif rows[row, LOW] == rows[winner, LOW]:
                    ties = True
        finished = False
        if ties:  # several stretches stand at this ID: step them all, keep the largest
            high, low = rows[winner, HIGH], rows[winner, LOW]
            for k in range(live):
                row = heads[k]
                if rows[row, HIGH] == high and rows[row, LOW] == low:
                    if _larger(rows, row, winner):
                        winner = row
                    heads[k] += 1
                    finished = finished or heads[k] == ends[k]
        else:
            heads[best] += 1
            finished = heads[best] == ends[best]
        version = rows[winner, VERSION]
        dead = version & _TOMBSTONE
        if version >= expired and not (dead and version < purge):
            for w in range(ROW_WORDS):
                out[m, w] = rows[winner, w]
            m += 1
            if dead:
                tombstones += 1
        if finished:
            live = _drop_finished(heads, ends, live)
    return m, tombstones


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
        high ^= finalise(low + keys[2])
        low ^= finalise(high + keys[1])
        high ^= finalise(low + keys[0])
        ids[m, 0], ids[m, 1] = byte_swap(high), byte_swap(low)
        versions[m] = version
        locations[m, 0], locations[m, 1], locations[m, 2] = rows[i, WORD3], rows[i, WORD4], rows[i, WORD5]
        m += 1
    return m, len(rows)
