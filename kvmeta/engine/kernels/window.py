"""A window on the hash order: how many rows of each run fall into a stretch of it, and those rows unpacked.

Merge and scan both move along the order window by window; `cut` sizes the next one.
"""

import numpy as np

from kvmeta.engine.kernels.directory import lower_bound, segment_from
from kvmeta.engine.kernels.layout import (
    RUN_FROM,
    RUN_SEGMENT,
    RUN_SEGMENTS,
    SEG_FIRST,
    SEG_LAST,
    SEG_PRIOR,
    SEG_ROWS,
)
from kvmeta.engine.kernels.memory import entry, field, njit
from kvmeta.engine.kernels.rows import unpack

U = np.uint64
_TOP = U(0xFFFFFFFFFFFFFFFF)


@njit
def _segment_at(run, segments, high):
    return segment_from(segments, field(run, RUN_SEGMENT), field(run, RUN_SEGMENTS), high)


@njit
def _all_rows(run, segments):
    if field(run, RUN_SEGMENTS) == U(0):
        return np.int64(0)
    last = field(run, RUN_SEGMENT) + field(run, RUN_SEGMENTS) - U(1)
    return np.int64(segments[last, SEG_PRIOR] + segments[last, SEG_ROWS])


@njit
def rows_below(run, segments, high):
    """Return how many rows of a run have a high half < `high`; an estimate next to a damaged page."""
    s = _segment_at(run, segments, high)
    if s == field(run, RUN_SEGMENT) + field(run, RUN_SEGMENTS):
        return _all_rows(run, segments)
    if high <= segments[s, SEG_FIRST]:
        return np.int64(segments[s, SEG_PRIOR])
    return np.int64(segments[s, SEG_PRIOR]) + lower_bound(entry(segments, s), high, True)


@njit
def cut(runs, segments, first, last, rows_max):
    """Return the last high half of the widest window from `first` with at most about `rows_max` rows.

    At most `last`. Exact only where the rows allow it: a window holds at least one high half.
    """
    before = 0
    total = 0
    for r in range(len(runs)):
        start = max(first, runs[r, RUN_FROM])
        before += rows_below(entry(runs, r), segments, start)
        if last < _TOP:
            total += rows_below(entry(runs, r), segments, max(last, runs[r, RUN_FROM]))
        else:
            total += _all_rows(entry(runs, r), segments)
    if total - before <= rows_max:
        return last
    low, high = first, last
    for _ in range(64):
        if high - low <= U(1):
            break
        middle = low + (high - low) // U(2)
        count = -before
        for r in range(len(runs)):
            count += rows_below(entry(runs, r), segments, max(middle, runs[r, RUN_FROM]))
        if count > rows_max:
            high = middle
        else:
            low = middle
            if count > rows_max - rows_max // 16:
                break
    return max(low, first + U(1)) - U(1)


@njit
def _segment_rows(run, segment, first, last, lenient):
    """Return a segment's rows [start, end) within [first, last] that are its run's, or (-1, -1): damage."""
    start = lower_bound(segment, max(first, field(run, RUN_FROM)), lenient)
    end = np.int64(field(segment, SEG_ROWS))
    if last < field(segment, SEG_LAST):
        end = lower_bound(segment, last + U(1), lenient)
    if start < 0 or end < 0:
        return np.int64(-1), np.int64(-1)
    return start, end


@njit
def count_window(runs, segments, first, last, lenient):
    """Return the rows of all runs within [first, last], or -1 - s where segment s is damaged there.

    If `lenient`, damaged pages are counted like others, at most.
    """
    total = 0
    for r in range(len(runs)):
        stop = runs[r, RUN_SEGMENT] + runs[r, RUN_SEGMENTS]
        s = _segment_at(entry(runs, r), segments, max(first, runs[r, RUN_FROM]))
        while s < stop and segments[s, SEG_FIRST] <= last:
            start, end = _segment_rows(entry(runs, r), entry(segments, s), first, last, lenient)
            if start < 0:
                return -1 - np.int64(s)
            total += max(0, end - start)
            s += U(1)
    return total


@njit
def unpack_window(runs, segments, first, last, lenient, out, heads, ends):
    """Unpack each run's rows within [first, last] to `out`; run r's lie in out[heads[r]:ends[r]].

    Return the rows written, or -1 - s where segment s is damaged there. `out` must hold `count_window` rows.
    If `lenient`, the rows of damaged pages are left out instead.
    """
    total = np.int64(0)
    for r in range(len(runs)):
        heads[r] = total
        stop = runs[r, RUN_SEGMENT] + runs[r, RUN_SEGMENTS]
        s = _segment_at(entry(runs, r), segments, max(first, runs[r, RUN_FROM]))
        while s < stop and segments[s, SEG_FIRST] <= last:
            start, end = _segment_rows(entry(runs, r), entry(segments, s), first, last, lenient)
            if start < 0:
                return -1 - np.int64(s)
            if end > start:
                got = unpack(entry(segments, s), start, end, lenient, out[total:])
                if got < 0:
                    return -1 - np.int64(s)
                total += got
            s += U(1)
        ends[r] = total
    return total
