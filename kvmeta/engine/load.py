"""Bulk load: batches are sorted and become runs directly, without the WAL; visible whole at the end.

Batches fill a buffer of `load_rows_max` rows; a full one is sorted and written as a run by a second thread
while the next fills. A row's version is the number of its batch until the load is installed: then one stamp a
batch is taken from the clock and added to the segments' version base, so a load is as new as the moment it
appears, and of two of its batches the later wins. A load that ends early leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import rows as row_kernels
from kvmeta.engine.kernels import sort
from kvmeta.engine.kernels.layout import ROW_WORDS
from kvmeta.engine.run import SegmentFiles
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.version import STAMP_STEP

Rows = NDArray[np.uint64]
Columns = tuple[NDArray[np.uint64], NDArray[np.uint64]]  # raw IDs u8[n, 2], locations u8[n, 3]


def sorted_writers(
    batches: Iterable[Columns], keys: Rows, files: SegmentFiles, *, rows_max: int, filter_bits: int
) -> tuple[list[list[SegmentWriter]], int, int]:
    """Return finished, unsealed segments of each sorted buffer, the rows read and the stamps needed.

    Whatever goes wrong, in the caller's iterator too, no file is left behind.
    """
    runs: list[list[SegmentWriter]] = []
    buffers = [np.empty((0, ROW_WORDS), np.uint64)] * 2
    total = stamps = filled = 0
    with ThreadPoolExecutor(1, "kvmeta-load") as pool:
        writing: Future[None] | None = None

        def hand_over(rows: Rows) -> None:
            nonlocal writing
            if writing is not None:
                writing.result()
            run: list[SegmentWriter] = []
            runs.append(run)
            writing = pool.submit(_write_sorted, rows, files, filter_bits, run)

        try:
            for ids, locations in batches:
                start = 0
                while start < len(ids):
                    buffers[0] = _with_room(buffers[0], filled, filled + len(ids) - start, rows_max)
                    end = min(len(ids), start + len(buffers[0]) - filled)
                    version = np.uint64(stamps * STAMP_STEP)
                    stamps += 1  # a batch split over two runs takes two, so that its later part wins
                    part = buffers[0][filled : filled + end - start]
                    row_kernels.fill(ids[start:end], locations[start:end], version, keys, part)
                    filled, start, total = filled + end - start, end, total + end - start
                    if filled == rows_max:
                        hand_over(buffers[0])
                        buffers.reverse()
                        filled = 0
            if filled:
                hand_over(buffers[0][:filled])
            if writing is not None:
                writing.result()
        except BaseException:
            if writing is not None:
                writing.exception()
            abandon(runs)
            raise
    return runs, total, stamps


def abandon(runs: Iterable[Iterable[SegmentWriter]]) -> None:
    """Remove the files of a load that is not to be."""
    for run in runs:
        for writer in run:
            writer.abandon()


def _with_room(buffer: Rows, filled: int, wanted: int, rows_max: int) -> Rows:
    """Return `buffer`, or a larger one with its rows, so that small loads stay small."""
    if len(buffer) >= min(wanted, rows_max):
        return buffer
    larger = np.empty((min(rows_max, max(wanted, 4 * len(buffer))), ROW_WORDS), np.uint64)
    larger[:filled] = buffer[:filled]
    return larger


def _write_sorted(rows: Rows, files: SegmentFiles, filter_bits: int, out: list[SegmentWriter]) -> None:
    ordered = np.empty_like(rows)
    m = sort.gather_latest(rows, sort.sort_order(rows), ordered)
    for writer in files.write(ordered[:m], filter_bits=filter_bits):
        out.append(writer)
