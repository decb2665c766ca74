"""Rows: made from a caller's columns, packed into pages and unpacked, and the bounds packing needs."""

import numpy as np

from kvmeta.engine.kernels.directory import page_is_good
from kvmeta.engine.kernels.hashing import mix_one, page_checksum
from kvmeta.engine.kernels.layout import (
    COLUMNS,
    HIGH,
    LOW,
    PAGE_BYTES,
    PAYLOAD_BYTES,
    SEG_BASE,
    SEG_COLUMNS,
    SEG_PAGE_ROWS,
    SEG_ROW_BYTES,
    VERSION,
    WORD3,
    WORD4,
    WORD5,
)
from kvmeta.engine.kernels.memory import byte_swap, field, load_u64, njit, store_u8, store_u64

U = np.uint64
_LOW32 = U(0xFFFFFFFF)


@njit
def fill(ids, locations, version, keys, out):
    """Write rows of `ids` (u8[n, 2], raw bytes) and `locations` (u8[n, 3]) under one version to out[:n]."""
    for i in range(len(ids)):
        high, low = mix_one(byte_swap(ids[i, 0]), byte_swap(ids[i, 1]), keys)
        out[i, HIGH], out[i, LOW], out[i, VERSION] = high, low, version
        out[i, WORD3], out[i, WORD4], out[i, WORD5] = locations[i, 0], locations[i, 1], locations[i, 2]


@njit
def column(rows, i, which):
    """Return column `which` of row i."""
    if which < 3:
        return rows[i, which]
    if which == 3:
        return rows[i, WORD3] & _LOW32
    if which == 4:
        return rows[i, WORD3] >> U(32)
    if which == 5:
        return rows[i, WORD4]
    if which == 6:
        return rows[i, WORD5] & _LOW32
    return rows[i, WORD5] >> U(32)


@njit
def bounds(rows, out):
    """Write each column's smallest, largest and first value and the bits that ever differ: u8[8, 4]."""
    for which in range(COLUMNS):
        first = column(rows, 0, which)
        low, high, differ = first, first, U(0)
        for i in range(1, len(rows)):
            value = column(rows, i, which)
            low = min(low, value)
            high = max(high, value)
            differ |= value ^ first
        out[which, 0], out[which, 1], out[which, 2], out[which, 3] = low, high, first, differ


@njit
def pack(rows, columns, row_bytes, page_rows, first_page, seed, out):
    """Pack `rows` into whole pages at `out` (u1[pages * 4096]); the last may be part full. Return the pages.

    `columns` is u8[8, 4]: base, shift, byte offset, mask. Each value is stored as 8 bytes whose excess the
    next column, row, padding or checksum overwrites.
    """
    base = U(out.ctypes.data)
    n = len(rows)
    pages = (n + page_rows - 1) // page_rows
    for p in range(pages):
        page = base + U(p) * U(PAGE_BYTES)
        at = page
        for i in range(p * page_rows, min(n, (p + 1) * page_rows)):
            for which in range(COLUMNS):
                value = (column(rows, i, which) - columns[which, 0]) >> columns[which, 1]
                store_u64(at + columns[which, 2], value)
            at += U(row_bytes)
        while at < page + U(PAYLOAD_BYTES):
            store_u8(at, np.uint8(0))
            at += U(1)
        store_u64(page + U(PAYLOAD_BYTES), page_checksum(page, seed, U(first_page + p)))
    return pages


@njit
def _layout(segment, which):
    """Return the base, shift, byte offset and mask of a column."""
    at = SEG_COLUMNS + 4 * which
    return field(segment, at), field(segment, at + 1), field(segment, at + 2), field(segment, at + 3)


@njit
def unpack(segment, first, end, lenient, out):
    """Unpack rows [first, end) of a segment to `out`; return their number, or -1 - p where page p is damaged.

    If `lenient`, the rows of damaged pages are left out instead.
    """
    page_rows = field(segment, SEG_PAGE_ROWS)
    row_bytes = field(segment, SEG_ROW_BYTES)
    base0, _, _, m0 = _layout(segment, 0)
    base1, _, at1, _ = _layout(segment, 1)
    base2, s2, at2, m2 = _layout(segment, 2)
    base3, s3, at3, m3 = _layout(segment, 3)
    base4, s4, at4, m4 = _layout(segment, 4)
    base5, s5, at5, m5 = _layout(segment, 5)
    base6, s6, at6, m6 = _layout(segment, 6)
    base7, s7, at7, m7 = _layout(segment, 7)
    row, o = U(first), 0
    stop = U(end)
    while row < stop:
        page = row // page_rows
        if not page_is_good(segment, page):
            if not lenient:
                return -1 - np.int64(page)
            row = (page + U(1)) * page_rows
            continue
        at = field(segment, SEG_BASE) + (page + U(1)) * U(PAGE_BYTES) + (row - page * page_rows) * row_bytes
        page_end = min(stop, (page + U(1)) * page_rows)
        while row < page_end:
            out[o, HIGH] = base0 + (load_u64(at) & m0)
            out[o, LOW] = base1 + load_u64(at + at1)
            out[o, VERSION] = base2 + ((load_u64(at + at2) & m2) << s2)
            volume = base3 + ((load_u64(at + at3) & m3) << s3)
            length = base4 + ((load_u64(at + at4) & m4) << s4)
            out[o, WORD3] = volume | (length << U(32))
            out[o, WORD4] = base5 + ((load_u64(at + at5) & m5) << s5)
            checksum = base6 + ((load_u64(at + at6) & m6) << s6)
            tag = base7 + ((load_u64(at + at7) & m7) << s7)
            out[o, WORD5] = checksum | (tag << U(32))
            o += 1
            row += U(1)
            at += row_bytes
    return np.int64(o)
