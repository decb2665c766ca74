"""A segment's header: what is needed to read its file, at its start and again at its end (docs/format.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels.hashing import page_checksum
from kvmeta.engine.kernels.layout import BLOCK_BYTES, COLUMNS, HIGH, LOW
from kvmeta.engine.page import PAGE_BYTES, PAYLOAD_BYTES
from kvmeta.errors import os_errors

MAGIC = b"KVMSEG\x00\x01"
RANGE_BITS_MAX = 12

HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("page_bytes", "<u4"),
        ("range_bits", "<u4"),
        ("store", "V16"),
        ("number", "<u8"),
        ("rows", "<u8"),
        ("tombstones", "<u8"),
        ("row_bytes", "<u4"),
        ("page_rows", "<u4"),
        ("row_pages", "<u8"),
        ("range_first", "<u4"),
        ("range_count", "<u4"),
        ("directory_offset", "<u8"),
        ("buckets", "<u8"),
        ("directory_checksum", "<u8"),
        ("filter_offset", "<u8"),
        ("filter_blocks", "<u8"),
        ("filter_checksum", "<u8"),
        ("file_bytes", "<u8"),
        ("first", "<u8", 2),
        ("last", "<u8", 2),
        ("lowest_version", "<u8"),
        ("highest_version", "<u8"),
        ("base", "<u8", COLUMNS),
        ("largest", "<u8", COLUMNS),
        ("shift", "u1", COLUMNS),
        ("width", "u1", COLUMNS),
    ]
)


@dataclass(frozen=True)
class SegmentRecord:
    """What the manifest remembers of a segment; enough to say what is lost when its file is."""

    number: int
    rows: int
    tombstones: int
    file_bytes: int
    first: int
    last: int
    lowest_version: int
    highest_version: int


def file_seed(store_id: bytes, number: int) -> int:
    """Return the seed of a file's page checksums: XXH3-64 of the store's ID and the file's number."""
    return int(xxhash.xxh3_64_intdigest(store_id + number.to_bytes(8, "little")))


def record_of(header: np.void) -> SegmentRecord:
    """Return the manifest's record of a header."""
    first, last = header["first"], header["last"]
    return SegmentRecord(
        number=int(header["number"]),
        rows=int(header["rows"]),
        tombstones=int(header["tombstones"]),
        file_bytes=int(header["file_bytes"]),
        first=int(first[0]) << 64 | int(first[1]),
        last=int(last[0]) << 64 | int(last[1]),
        lowest_version=int(header["lowest_version"]),
        highest_version=int(header["highest_version"]),
    )


def is_sound(header: np.void) -> bool:
    """Return whether the parts of a header agree: what it says lies where, lies within the file."""
    h = {name: header[name].tolist() for name in HEADER.names or ()}
    bits, widths, shifts = h["range_bits"], h["width"], h["shift"]
    columns = (
        max(widths) <= 8
        and max(shifts) < 64
        and widths[LOW] == 8
        and h["base"][LOW] == shifts[LOW] == shifts[HIGH] == 0
        and h["row_bytes"] == sum(widths)
    )
    if not columns or header["magic"] != MAGIC or h["page_bytes"] != PAGE_BYTES or bits > RANGE_BITS_MAX:
        return False
    ranges = [h[name][0] >> (64 - bits) for name in ("first", "last")]
    directory = round_up(directory_bytes(header))
    filter_bytes = round_up(h["filter_blocks"] * BLOCK_BYTES)
    filter_offset = h["directory_offset"] + directory if filter_bytes else 0
    return bool(
        h["page_rows"] == PAYLOAD_BYTES // h["row_bytes"]
        and 0 < h["rows"] < 1 << 32
        and h["row_pages"] == -(-h["rows"] // h["page_rows"])
        and h["first"] <= h["last"]
        and ranges == [h["range_first"], h["range_first"] + h["range_count"] - 1]
        and h["directory_offset"] == (1 + h["row_pages"]) * PAGE_BYTES
        and h["filter_offset"] == filter_offset
        and h["file_bytes"] == h["directory_offset"] + directory + filter_bytes + PAGE_BYTES
    )


def directory_bytes(header: np.void) -> int:
    """Return the bytes of the bucket directory's two tables."""
    return 4 * (int(header["range_count"]) + int(header["buckets"]) + 2)


def is_left_over(path: Path, store_id: bytes) -> bool:
    """Return whether a segment file is this store's own: unfinished (no header yet) or finished."""
    with os_errors("reading", path), open(path, "rb") as file:
        page = file.read(PAGE_BYTES)
    if not any(page):
        return True
    if len(page) < PAGE_BYTES or page[:8] != MAGIC:
        return False
    return bytes(np.frombuffer(page, HEADER, 1)[0]["store"]) == store_id


def header_page(header: np.void, seed: np.uint64, page: int) -> bytes:
    """Return the page that holds `header` as page `page` of its file."""
    out = np.zeros(PAGE_BYTES, np.uint8)
    out[: HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
    out[PAYLOAD_BYTES:] = np.array([page_checksum(out.ctypes.data, seed, page)], np.uint64).view(np.uint8)
    return out.tobytes()


def page_good(data: NDArray[np.uint8], page: int, seed: np.uint64) -> bool:
    """Return whether page `page` of a file's bytes has the checksum of its place."""
    stored = data[page * PAGE_BYTES + PAYLOAD_BYTES : (page + 1) * PAGE_BYTES].copy().view("<u8")[0]
    return bool(page_checksum(data.ctypes.data + page * PAGE_BYTES, seed, page) == stored)


def round_up(size: int) -> int:
    """Return `size` rounded up to whole pages."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES
