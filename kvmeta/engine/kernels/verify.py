"""Verifying a segment's row pages, and the hash range a page covers."""

import numpy as np

from kvmeta.engine.kernels.directory import check_page
from kvmeta.engine.kernels.layout import (
    PAGE_DAMAGED,
    SEG_BUCKETS,
    SEG_PAGE_ROWS,
    SEG_RANGE_BITS,
    SEG_RANGE_COUNT,
    SEG_RANGE_FIRST,
    SEG_RANGES,
    SEG_ROWS,
)
from kvmeta.engine.kernels.memory import field, load_u32, njit

U = np.uint64


@njit
def verify_pages(segment, first, end):
    """Read row pages [first, end) whatever is known of them, note their states, return the damaged count."""
    damaged = 0
    for p in range(first, end):
        if check_page(segment, U(p)) == PAGE_DAMAGED:
            damaged += 1
    return damaged


@njit
def _bucket_start(segment, bucket):
    """Return the smallest high half that falls into `bucket` or a later one."""
    which = U(0)
    while (
        which + U(1) < field(segment, SEG_RANGE_COUNT)
        and U(load_u32(field(segment, SEG_RANGES) + (which + U(1)) * U(4))) <= bucket
    ):
        which += U(1)
    first = U(load_u32(field(segment, SEG_RANGES) + which * U(4)))
    count = U(load_u32(field(segment, SEG_RANGES) + (which + U(1)) * U(4))) - first
    bits = field(segment, SEG_RANGE_BITS)
    start = U(0)
    if bits > U(0):
        start = (field(segment, SEG_RANGE_FIRST) + which) << (U(64) - bits)
    inside = U(0)
    if count > U(0):  # the smallest x with x * count >> 32 >= bucket - first
        inside = (((bucket - first) << U(32)) + count - U(1)) // count
    return start + ((inside << U(32)) >> bits)


@njit
def page_range(segment, page):
    """Return the first and the last high half a row of row page `page` can have, by the bucket directory."""
    first_row = U(page) * field(segment, SEG_PAGE_ROWS)
    last_row = min(field(segment, SEG_ROWS), first_row + field(segment, SEG_PAGE_ROWS)) - U(1)
    buckets = U(load_u32(field(segment, SEG_RANGES) + field(segment, SEG_RANGE_COUNT) * U(4)))
    low, high = U(0), buckets
    while high - low > U(1):  # the last bucket that starts at or before the page's first row
        middle = (low + high) // U(2)
        if U(load_u32(field(segment, SEG_BUCKETS) + middle * U(4))) <= first_row:
            low = middle
        else:
            high = middle
    end = low  # several buckets may start at the page's first row: the empty ones before it hold nothing
    while end < buckets and U(load_u32(field(segment, SEG_BUCKETS) + end * U(4))) <= last_row:
        end += U(1)
    first = _bucket_start(segment, low)
    last = U(0xFFFFFFFFFFFFFFFF)
    if end < buckets:
        last = _bucket_start(segment, end) - U(1)
    return first, last
