"""Finding a row of a segment: its bucket directory, its pages, the walk; and building directory and filter.

The directory is two levels. The top `range bits` of a mixed ID name a hash range; ranges[r] is its first
bucket. Within a range the next 32 hash bits, scaled by the range's bucket count, name the bucket; buckets[b]
is its first row. What the scaling leaves over is the place inside the bucket, so a row is found by
interpolation and a short walk.
"""

import numpy as np

from kvmeta.engine.kernels.hashing import page_checksum
from kvmeta.engine.kernels.layout import (
    BLOCK_BYTES,
    BUCKET_ROWS,
    PAGE_BYTES,
    PAGE_DAMAGED,
    PAGE_GOOD,
    PAGE_UNREAD,
    PAYLOAD_BYTES,
    SEG_BASE,
    SEG_BLOCKS,
    SEG_BUCKETS,
    SEG_COLUMNS,
    SEG_FILTER,
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
    SEG_STATES,
)
from kvmeta.engine.kernels.memory import field, load_u8, load_u32, load_u64, njit, store_u8, store_u64

U = np.uint64
ABSENT, DAMAGED = U(0), U(1)  # no row has these addresses
_PAGE, _LOW32, _BLOCK = U(PAGE_BYTES), U(0xFFFFFFFF), U(BLOCK_BYTES)


@njit
def check_page(segment, page):
    """Read row page `page` (0 is the first), note its state and return it."""
    address = field(segment, SEG_BASE) + (page + U(1)) * _PAGE
    stored = load_u64(address + U(PAYLOAD_BYTES))
    good = page_checksum(address, field(segment, SEG_SEED), page + U(1)) == stored
    state = PAGE_GOOD if good else PAGE_DAMAGED
    store_u8(field(segment, SEG_STATES) + page, state)
    return state


@njit
def page_is_good(segment, page):
    """Verify row page `page` (0 is the first) at its first touch; return False where it is damaged."""
    state = load_u8(field(segment, SEG_STATES) + page)
    if state == PAGE_UNREAD:
        state = check_page(segment, page)
    return state == PAGE_GOOD


@njit
def row_page(segment, row):
    """Return the row page that holds `row`."""
    return U(np.uint32(row) // np.uint32(field(segment, SEG_PAGE_ROWS)))


@njit
def row_address(segment, page, row):
    """Return the address of `row` in row page `page`."""
    in_page = row - page * field(segment, SEG_PAGE_ROWS)
    return field(segment, SEG_BASE) + (page + U(1)) * _PAGE + in_page * field(segment, SEG_ROW_BYTES)


@njit
def row_high(segment, page, row):
    """Return the high half of the mixed ID of a row."""
    stored = load_u64(row_address(segment, page, row)) & field(segment, SEG_COLUMNS + 3)
    return field(segment, SEG_COLUMNS) + stored


@njit
def row_low(segment, page, row):
    """Return the low half of the mixed ID of a row."""
    return load_u64(row_address(segment, page, row) + field(segment, SEG_COLUMNS + 6))


@njit
def range_of(segment, high):
    """Return the number of the hash range of `high` in the segment's table."""
    bits = field(segment, SEG_RANGE_BITS)  # may be 0, and shifting a u8 by 64 is undefined
    return ((high >> U(1)) >> (U(63) - bits)) - field(segment, SEG_RANGE_FIRST)


@njit
def bucket_of(segment, high):
    """Return (bucket, place in it as a fraction of 2**32, whether the hash range has any row)."""
    which = range_of(segment, high)
    if which >= field(segment, SEG_RANGE_COUNT):
        return U(0), U(0), False
    pair = load_u64(field(segment, SEG_RANGES) + which * U(4))
    first = pair & _LOW32
    count = (pair >> U(32)) - first
    scaled = ((high << field(segment, SEG_RANGE_BITS)) >> U(32)) * count
    return first + (scaled >> U(32)), scaled & _LOW32, count > U(0)


@njit
def bucket_rows(segment, bucket):
    """Return the rows [first, end) of a bucket."""
    pair = load_u64(field(segment, SEG_BUCKETS) + bucket * U(4))
    return pair & _LOW32, pair >> U(32)


@njit
def find_row(segment, high, low, start, first, end):
    """Return the address of the packed row of a mixed ID within rows [first, end), walking from `start`.

    ABSENT or DAMAGED where there is none or it cannot be told.
    """
    target = high - field(segment, SEG_COLUMNS)
    mask = field(segment, SEG_COLUMNS + 3)
    row_bytes, page_rows = field(segment, SEG_ROW_BYTES), field(segment, SEG_PAGE_ROWS)
    row = start
    page = row_page(segment, row)
    if not page_is_good(segment, page):
        return DAMAGED
    in_page = row - page * page_rows
    at = field(segment, SEG_BASE) + (page + U(1)) * _PAGE + in_page * row_bytes
    value = load_u64(at) & mask
    while value < target:
        row += U(1)
        in_page += U(1)
        at += row_bytes
        if row >= end:
            return ABSENT
        if in_page == page_rows:
            page += U(1)
            in_page = U(0)
            at = row_address(segment, page, row)
            if not page_is_good(segment, page):
                return DAMAGED
        value = load_u64(at) & mask
        if value > target:
            return ABSENT
    while value > target:
        if row <= first:
            return ABSENT
        row -= U(1)
        at -= row_bytes
        if in_page == U(0):
            page -= U(1)
            in_page = page_rows
            at = row_address(segment, page, row)
            if not page_is_good(segment, page):
                return DAMAGED
        in_page -= U(1)
        value = load_u64(at) & mask
        if value < target:
            return ABSENT
    if load_u64(at + field(segment, SEG_COLUMNS + 6)) == low:
        return at
    return _find_among_equal(segment, high, low, row, first, end)


@njit
def _find_among_equal(segment, high, low, row, first, end):
    """Look at the neighbours with the same high half, which only 64 equal hash bits bring about."""
    for down in (True, False):
        at = row
        while True:
            if down:
                if at <= first:
                    break
                at -= U(1)
            else:
                at += U(1)
                if at >= end:
                    break
            page = row_page(segment, at)
            if not page_is_good(segment, page):
                return DAMAGED
            if row_high(segment, page, at) != high:
                break
            if row_low(segment, page, at) == low:
                return row_address(segment, page, at)
    return ABSENT


@njit
def lower_bound(segment, high, lenient):
    """Return the first row whose high half is >= `high` (the row count if none), or -1: a damaged page.

    If `lenient`, the rows of damaged pages are passed over instead.
    """
    if high <= field(segment, SEG_FIRST):
        return np.int64(0)
    if high > field(segment, SEG_LAST):
        return np.int64(field(segment, SEG_ROWS))
    bucket, _, any_row = bucket_of(segment, high)
    if any_row:
        row, end = bucket_rows(segment, bucket)
    else:  # an empty range inside the segment: its first bucket starts where its rows would
        bucket = U(load_u32(field(segment, SEG_RANGES) + range_of(segment, high) * U(4)))
        row = U(load_u32(field(segment, SEG_BUCKETS) + bucket * U(4)))
        end = row
    while row < end:
        page = row_page(segment, row)
        if not page_is_good(segment, page):
            if not lenient:
                return np.int64(-1)
            row = (page + U(1)) * field(segment, SEG_PAGE_ROWS)
            continue
        if row_high(segment, page, row) >= high:
            break
        row += U(1)
    return np.int64(row)


@njit
def segment_from(segments, first, count, high):
    """Return the first of `count` segments from `first` with a last high half >= `high`, or one past them."""
    low, end = first, first + count
    while low < end:
        middle = (low + end) >> U(1)
        if segments[middle, SEG_LAST] < high:
            low = middle + U(1)
        else:
            end = middle
    return low


@njit
def find_segment(segments, first, count, high):
    """Return the segment of a run (`count` of them from `first`) that may hold `high`, or -1."""
    at = segment_from(segments, first, count, high)
    if at == first + count or high < segments[at, SEG_FIRST]:
        return np.int64(-1)
    return np.int64(at)


@njit
def filter_block(segment, low):
    """Return the address of the filter block of a mixed ID."""
    return field(segment, SEG_FILTER) + (((low >> U(32)) * field(segment, SEG_BLOCKS)) >> U(32)) * _BLOCK


@njit
def filter_has(block, high):
    """Return whether all six bits of a mixed ID are set in its block."""
    bits = high * U(0x9E3779B97F4A7C15)
    for _ in range(6):
        word = load_u64(block + ((bits >> U(61)) << U(3)))
        if not (word >> ((bits >> U(55)) & U(63))) & U(1):
            return False
        bits <<= U(9)
    return True


@njit
def fill_filter(segment):
    """Set the bits of every row of a segment in its (zeroed) filter."""
    for r in range(field(segment, SEG_ROWS)):
        row = U(r)
        page = row_page(segment, row)
        high = row_high(segment, page, row)
        block = filter_block(segment, row_low(segment, page, row))
        bits = high * U(0x9E3779B97F4A7C15)
        for _ in range(6):
            word = block + ((bits >> U(61)) << U(3))
            store_u64(word, load_u64(word) | (U(1) << ((bits >> U(55)) & U(63))))
            bits <<= U(9)


@njit
def count_ranges(segment, ranges):
    """Fill `ranges` (u4[range count + 1]) with the first bucket of each range; return the bucket count.

    -1 where a row's high half is below the one before it or outside the segment's bounds.
    """
    ranges[:] = 0
    before = field(segment, SEG_FIRST)
    for r in range(field(segment, SEG_ROWS)):
        row = U(r)
        high = row_high(segment, row_page(segment, row), row)
        if high < before or high > field(segment, SEG_LAST):
            return -1
        before = high
        ranges[range_of(segment, high) + U(1)] += 1
    buckets = 0
    for i in range(1, len(ranges)):
        buckets += (ranges[i] + BUCKET_ROWS - 1) // BUCKET_ROWS
        ranges[i] = buckets
    return buckets


@njit
def fill_buckets(segment, buckets):
    """Fill `buckets` (u4[bucket count + 1]) with the first row of each bucket of the (set) ranges."""
    at = U(0)
    rows = field(segment, SEG_ROWS)
    for r in range(rows):
        row = U(r)
        bucket, _, _ = bucket_of(segment, row_high(segment, row_page(segment, row), row))
        while at <= bucket:
            buckets[at] = row
            at += U(1)
    while at < U(len(buckets)):
        buckets[at] = rows
        at += U(1)
