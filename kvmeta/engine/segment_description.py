"""A segment as the kernels see it: one row of u8 (`kernels/layout.py`), and the bucket directory it names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import directory as directory_kernels
from kvmeta.engine.kernels.layout import (
    SEG_BASE,
    SEG_BUCKETS,
    SEG_COLUMNS,
    SEG_FIELDS,
    SEG_FIRST,
    SEG_LAST,
    SEG_PAGE_ROWS,
    SEG_RANGE_BITS,
    SEG_RANGE_COUNT,
    SEG_RANGE_FIRST,
    SEG_RANGES,
    SEG_ROW_BYTES,
    SEG_ROWS,
    SEG_SEED,
)
from kvmeta.engine.page import Packing


def describe(header: np.void, base: int, seed: np.uint64) -> NDArray[np.uint64]:
    """Return the description of a segment mapped at address `base`; its tables are not set yet."""
    description = np.zeros(SEG_FIELDS, np.uint64)
    description[SEG_BASE], description[SEG_SEED] = base, seed
    description[SEG_ROWS], description[SEG_ROW_BYTES] = header["rows"], header["row_bytes"]
    description[SEG_PAGE_ROWS] = header["page_rows"]
    description[SEG_RANGE_BITS], description[SEG_RANGE_FIRST] = header["range_bits"], header["range_first"]
    description[SEG_RANGE_COUNT] = header["range_count"]
    description[SEG_FIRST], description[SEG_LAST] = header["first"][0], header["last"][0]
    packing = Packing(header["base"], header["shift"].astype(np.int64), header["width"].astype(np.int64))
    description[SEG_COLUMNS:] = packing.table().reshape(-1)
    return description


def build_directory(
    header: np.void, description: NDArray[np.uint64]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]] | None:
    """Return (ranges, buckets) of the rows and enter them in the description; the caller keeps them alive.

    None where the rows are not in the order, or not within the bounds, that the header says.
    """
    ranges = np.zeros(int(header["range_count"]) + 1, np.uint32)
    count = directory_kernels.count_ranges(address_of(description), ranges)
    if count < 0:
        return None
    buckets = np.zeros(count + 1, np.uint32)
    description[SEG_RANGES], description[SEG_BUCKETS] = ranges.ctypes.data, buckets.ctypes.data
    directory_kernels.fill_buckets(address_of(description), buckets)
    return ranges, buckets


def address_of(description: NDArray[np.uint64]) -> np.uint64:
    """Return where a description lies, as the kernels take it; the caller keeps it alive."""
    return np.uint64(description.ctypes.data)
