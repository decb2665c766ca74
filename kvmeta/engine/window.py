"""A window on a view's hash order: the rows of every source within a stretch of it, merged.

Merge and scan are both a walk of such windows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import merge as merge_kernels
from kvmeta.engine.kernels import window as kernels
from kvmeta.engine.kernels.layout import ROW_WORDS
from kvmeta.engine.view import View
from kvmeta.errors import CorruptionError

HASH_MAX = (1 << 64) - 1
Rows = NDArray[np.uint64]


def cut(view: View, first_high: int, last_high: int, rows_max: int) -> int:
    """Return where to end a window from `first_high` so that the runs have at most `rows_max` rows in it."""
    return int(
        kernels.cut(view.run_table, view.segment_table, np.uint64(first_high), np.uint64(last_high), rows_max)
    )


def window_end(view: View, first_high: int, last_high: int, rows_max: int) -> int:
    """Return where to end a window of about `rows_max` rows; a memtable's rows lie evenly over the order."""
    for memtable in view.memtables:
        if memtable.count > rows_max:
            last_high = min(last_high, first_high + (HASH_MAX + 1) * rows_max // memtable.count)
    return cut(view, first_high, last_high, rows_max)


def merged_rows(
    view: View, first_high: int, last_high: int, *, purge: int = 0, expired: int = 0, lenient: bool = False
) -> Rows:
    """Return the merged rows of a view's sources with first_high <= high half <= last_high.

    Tombstones below version `purge` and rows below `expired` are left out. Raises CorruptionError with the
    hash range where a page in the window is damaged; if `lenient`, its rows are left out instead.
    """
    first, last = np.uint64(first_high), np.uint64(last_high)
    total = int(kernels.count_window(view.run_table, view.segment_table, first, last, lenient))
    if total < 0:
        raise _damage(view, total)
    extra = [memtable.sorted_rows(first_high, last_high) for memtable in view.memtables if memtable.count]
    rows = np.empty((total + sum(map(len, extra)), ROW_WORDS), np.uint64)
    heads = np.zeros(len(view.runs) + len(extra), np.uint64)
    ends = np.zeros_like(heads)
    got = int(
        kernels.unpack_window(view.run_table, view.segment_table, first, last, lenient, rows, heads, ends)
    )
    if got < 0:
        raise _damage(view, got)
    for i, part in enumerate(extra, start=len(view.runs)):
        rows[got : got + len(part)] = part
        heads[i], ends[i] = got, got + len(part)
        got += len(part)
    out = np.empty_like(rows)
    m = merge_kernels.merge(rows, heads, ends, np.uint64(purge), np.uint64(expired), out)
    return out[:m]


def within(rows: Rows, stretches: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return bool[n]: whether a row's high half lies in one of `stretches`, u8[m, 2] of first and last.

    The stretches are disjoint and in order.
    """
    at = np.searchsorted(stretches[:, 0], rows[:, 0], side="right") - 1
    inside: NDArray[np.bool_] = (at >= 0) & (rows[:, 0] <= stretches[at, 1])
    return inside


def _damage(view: View, code: int) -> CorruptionError:
    segment = view.segments[-1 - code]
    pages = [0] if segment.damage else segment.damaged_pages()
    ranges = [segment.page_range(page) for page in pages]
    why = segment.damage or f"{segment.path}: {len(pages)} damaged pages"
    return CorruptionError(f"{why}; run verify to see which hash ranges are lost", segment.path, ranges)
