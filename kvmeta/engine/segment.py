"""A segment: an immutable file of packed rows in the order of their mixed IDs, at most 256 MiB.

    page 0            header: everything needed to read the rest (`HEADER`)
    pages 1..p        rows, packed, each page with its checksum
    directory         ranges u4[], buckets u4[], padded to a page
    filter            blocks of 64 bytes, padded to a page (upper runs only)
    last page         the header again

The header is written last, so a file without one is a write that did not finish. Every byte is covered: pages
by their own checksum (seeded with store, file and page number, so a page in the wrong place fails too),
directory and filter by checksums in the header. Read by mmap; a segment is never changed or truncated.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels import directory as directory_kernels
from kvmeta.engine.kernels import rows as row_kernels
from kvmeta.engine.kernels import verify as verify_kernels
from kvmeta.engine.kernels.hashing import page_checksum
from kvmeta.engine.kernels.layout import (
    BLOCK_BYTES,
    COLUMNS,
    HIGH,
    LOW,
    PAGE_DAMAGED,
    ROW_WORDS,
    SEG_BASE,
    SEG_BLOCKS,
    SEG_BUCKETS,
    SEG_COLUMNS,
    SEG_FIELDS,
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
    VERSION,
)
from kvmeta.engine.page import PAGE_BYTES, PAYLOAD_BYTES, Bounds, Packing
from kvmeta.errors import CorruptionError, os_errors
from kvmeta.version import TOMBSTONE

MAGIC = b"KVMSEG\x00\x01"
RANGE_BITS_MAX = 12
_RANGE_ROWS = 256  # rows a hash range should have at least, so that ranges cost at most 1/64 byte an entry
_WRITE_PAGES = 256
_SYNC_BYTES = 16 << 20

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
        ("low", "<u8", COLUMNS),
        ("high", "<u8", COLUMNS),
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


class SegmentWriter:
    """Writes one segment: `append` sorted rows, `finish`, `seal`; `abandon` removes what was written."""

    def __init__(self, path: Path, number: int, store_id: bytes, bounds: Bounds, *, filter_bits: int) -> None:
        self.path = path
        self.number = number
        self.rows = 0
        self._store_id = store_id
        self._bounds = bounds
        self._packing = Packing.for_bounds(bounds)
        self._columns = self._packing.table()
        self._seed = np.uint64(file_seed(store_id, number))
        self._filter_bits = filter_bits
        self._tombstones = 0
        self._pages = 0
        self._bytes = 0
        self._synced = 0
        self._held = np.empty((0, ROW_WORDS), np.uint64)  # rows that do not fill a page yet
        self._first: tuple[int, int] = (0, 0)
        self._last: tuple[int, int] = (0, 0)
        self._versions = [(1 << 64) - 1, 0]
        self._header = np.zeros(1, HEADER)[0]
        self._buffer = np.empty(_WRITE_PAGES * PAGE_BYTES, np.uint8)
        with os_errors("creating", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            self._write(bytes(PAGE_BYTES))

    def append(self, rows: NDArray[np.uint64]) -> None:
        """Append `rows` (u8[n, 6]), sorted, all above the ones before and within the writer's bounds."""
        if not len(rows):
            return
        if not self.rows:
            self._first = (int(rows[0, HIGH]), int(rows[0, LOW]))
        self._last = (int(rows[-1, HIGH]), int(rows[-1, LOW]))
        self.rows += len(rows)
        versions = rows[:, VERSION]
        self._tombstones += int(np.count_nonzero(versions & np.uint64(TOMBSTONE)))
        self._versions = [
            min(self._versions[0], int(versions.min())),
            max(self._versions[1], int(versions.max())),
        ]
        page_rows = self._packing.page_rows
        if len(self._held):
            missing = page_rows - len(self._held)
            rows, head = rows[missing:], np.concatenate([self._held, rows[:missing]])
            if len(head) < page_rows:
                self._held = head
                return
            self._pack(head)
        whole = len(rows) // page_rows * page_rows
        for start in range(0, whole, _WRITE_PAGES * page_rows):
            self._pack(rows[start : min(whole, start + _WRITE_PAGES * page_rows)])
        self._held = rows[whole:].copy()

    def finish(self) -> None:
        """Write the last page, the directory and the filter. The header is still missing."""
        if len(self._held):
            self._pack(self._held)
        header = self._header
        header["magic"], header["page_bytes"] = MAGIC, PAGE_BYTES
        header["store"], header["number"] = np.void(self._store_id), self.number
        header["rows"], header["tombstones"] = self.rows, self._tombstones
        header["row_bytes"], header["page_rows"] = self._packing.row_bytes, self._packing.page_rows
        header["row_pages"] = self._pages
        header["first"], header["last"] = self._first, self._last
        header["low"], header["high"] = self._packing.base, self._bounds.high
        header["shift"], header["width"] = self._packing.shift, self._packing.width
        bits = _range_bits(self._first[0], self._last[0], self.rows)
        header["range_bits"] = bits
        header["range_first"] = self._first[0] >> (64 - bits) if bits else 0
        header["range_count"] = (self._last[0] >> (64 - bits) if bits else 0) - int(header["range_first"]) + 1
        with os_errors("writing", self.path), mmap.mmap(self._fd, self._bytes, prot=mmap.PROT_READ) as pages:
            self._write_tables(np.frombuffer(pages, np.uint8).ctypes.data)
        self._bytes += PAGE_BYTES  # the footer's
        header["file_bytes"] = self._bytes

    def _write_tables(self, base: int) -> None:
        header = self._header
        description = _describe(header, base, self._seed)
        ranges, buckets = _build_directory(header, description)
        header["buckets"], header["directory_offset"] = len(buckets) - 1, self._bytes
        section = _padded(ranges.tobytes() + buckets.tobytes())
        header["directory_checksum"] = xxhash.xxh3_64_intdigest(section)
        self._write(section)
        if self._filter_bits:
            blocks = max(1, self.rows * self._filter_bits // (8 * BLOCK_BYTES))
            bits = np.zeros(blocks * BLOCK_BYTES, np.uint8)
            description[SEG_FILTER], description[SEG_BLOCKS] = bits.ctypes.data, blocks
            directory_kernels.fill_filter(_address(description))
            header["filter_blocks"], header["filter_offset"] = blocks, self._bytes
            section = _padded(bits.tobytes())
            header["filter_checksum"] = xxhash.xxh3_64_intdigest(section)
            self._write(section)

    def seal(self, version_offset: int = 0) -> SegmentRecord:
        """Write header and footer, fsync and close. `version_offset` is added to every row's version."""
        header = self._header
        header["lowest_version"] = self._versions[0] + version_offset
        header["highest_version"] = self._versions[1] + version_offset
        header["low"][VERSION] += np.uint64(version_offset)
        header["high"][VERSION] += np.uint64(version_offset)
        with os_errors("writing", self.path):
            os.pwrite(self._fd, _header_page(header, self._seed, 0), 0)
            last = self._bytes // PAGE_BYTES - 1
            os.pwrite(self._fd, _header_page(header, self._seed, last), last * PAGE_BYTES)
            os.fsync(self._fd)
            os.close(self._fd)
        self._fd = -1
        return record_of(header)

    def abandon(self) -> None:
        """Close and remove the file; whatever was written is not wanted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with os_errors("removing", self.path):
            self.path.unlink(missing_ok=True)

    def _pack(self, rows: NDArray[np.uint64]) -> None:
        packing = self._packing
        pages = row_kernels.pack(
            rows,
            self._columns,
            packing.row_bytes,
            packing.page_rows,
            self._pages + 1,
            self._seed,
            self._buffer,
        )
        self._pages += pages
        self._write(self._buffer.data[: pages * PAGE_BYTES])

    def _write(self, data: bytes | memoryview) -> None:
        with os_errors("writing", self.path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._bytes += len(data)
            if self._bytes - self._synced >= _SYNC_BYTES:  # else the last fsync stalls the WAL's for seconds
                os.fdatasync(self._fd)
                self._synced = self._bytes


class Segment:
    """An open segment: its mapping, its description for the kernels, and which of its pages are damaged.

    A file that cannot be used at all (missing, cut, foreign, both headers bad) still opens, with `damage`
    saying why: then every ID between its first and last fails, and all others are answered.
    """

    def __init__(
        self, path: Path, record: SegmentRecord, store_id: bytes, known_damage: tuple[int, ...] = ()
    ) -> None:
        self.path = path
        self.record = record
        self.damage: str | None = None
        self._seed = np.uint64(file_seed(store_id, record.number))
        self._map: mmap.mmap | None = None
        self.header = np.zeros(1, HEADER)[0]
        self.states = np.zeros(1, np.uint8)
        self.description = np.zeros(SEG_FIELDS, np.uint64)
        self._tables: tuple[NDArray[np.uint32], ...] = ()
        try:
            self._open(store_id)
            self.states[[page for page in known_damage if page < len(self.states)]] = PAGE_DAMAGED
        except CorruptionError as error:
            self.damage = str(error)
            self._describe_as_lost()

    def _open(self, store_id: bytes) -> None:
        with os_errors("opening", self.path):
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise CorruptionError(f"{self.path} is missing", self.path) from None
            try:
                size = os.fstat(fd).st_size
                if size != self.record.file_bytes:
                    raise CorruptionError(
                        f"{self.path} has {size} bytes, not the {self.record.file_bytes} that were written",
                        self.path,
                    )
                self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        data = np.frombuffer(self._map, np.uint8)
        last = size // PAGE_BYTES - 1
        for page in (0, last):
            if _page_good(data, page, self._seed):
                self.header = data[page * PAGE_BYTES :][: HEADER.itemsize].copy().view(HEADER)[0]
                break
        else:
            raise CorruptionError(f"{self.path}: header and footer are damaged", self.path)
        if bytes(self.header["store"]) != store_id or record_of(self.header) != self.record:
            raise CorruptionError(f"{self.path} is not the file the manifest names", self.path)
        self.states = np.zeros(int(self.header["row_pages"]), np.uint8)
        self.description = _describe(self.header, data.ctypes.data, self._seed)
        self.description[SEG_STATES] = self.states.ctypes.data
        self._map.madvise(mmap.MADV_RANDOM)
        self._open_tables(data)

    def _open_tables(self, data: NDArray[np.uint8]) -> None:
        if self._directory_good(data):
            offset = int(self.header["directory_offset"])
            self.description[SEG_RANGES] = data.ctypes.data + offset
            self.description[SEG_BUCKETS] = (
                data.ctypes.data + offset + 4 * (int(self.header["range_count"]) + 1)
            )
        else:  # it says nothing the rows do not say
            if verify_kernels.verify_pages(_address(self.description), 0, len(self.states)):
                raise CorruptionError(
                    f"{self.path}: the bucket directory and row pages are damaged", self.path
                )
            self._tables = _build_directory(self.header, self.description)
        if int(self.header["filter_blocks"]) and self._filter_good(
            data
        ):  # without one, lookups read the page
            self.description[SEG_FILTER] = data.ctypes.data + int(self.header["filter_offset"])
            self.description[SEG_BLOCKS] = self.header["filter_blocks"]

    def _directory_good(self, data: NDArray[np.uint8]) -> bool:
        offset = int(self.header["directory_offset"])
        size = 4 * (int(self.header["range_count"]) + int(self.header["buckets"]) + 2)
        section = data[offset : offset + _round_up(size)]
        return bool(xxhash.xxh3_64_intdigest(section.data) == int(self.header["directory_checksum"]))

    def _filter_good(self, data: NDArray[np.uint8]) -> bool:
        offset = int(self.header["filter_offset"])
        section = data[offset : offset + _round_up(int(self.header["filter_blocks"]) * BLOCK_BYTES)]
        return bool(xxhash.xxh3_64_intdigest(section.data) == int(self.header["filter_checksum"]))

    def _describe_as_lost(self) -> None:
        """Describe one bucket with one row in one damaged page, over the whole range the file held."""
        self.states = np.full(1, PAGE_DAMAGED, np.uint8)
        self._tables = (np.array([0, 1], np.uint32), np.array([0, 1], np.uint32))
        description = np.zeros(SEG_FIELDS, np.uint64)
        description[SEG_ROWS] = description[SEG_ROW_BYTES] = description[SEG_PAGE_ROWS] = 1
        description[SEG_RANGE_COUNT] = 1
        description[SEG_RANGES] = self._tables[0].ctypes.data
        description[SEG_BUCKETS] = self._tables[1].ctypes.data
        description[SEG_FIRST], description[SEG_LAST] = self.record.first >> 64, self.record.last >> 64
        description[SEG_STATES] = self.states.ctypes.data
        self.description = description

    @property
    def bounds(self) -> Bounds:
        """Return bounds of the columns of its rows."""
        shift = self.header["shift"].astype(np.int64)
        shift[self.header["width"] == 0] = 64
        return Bounds(self.header["low"].copy(), self.header["high"].copy(), shift)

    @property
    def tables_bytes(self) -> int:
        """Return the bytes of directory, filter and page states: what lookups need besides the pages."""
        if self.damage:
            return 0
        directory = 4 * (int(self.header["range_count"]) + int(self.header["buckets"]) + 2)
        return directory + int(self.header["filter_blocks"]) * BLOCK_BYTES + len(self.states)

    def will_need(self, first: int, end: int) -> None:
        """Start reading the pages of rows [first, end)."""
        if self._map is not None and end > first and not self.damage:
            page_rows = int(self.header["page_rows"])
            pages = range(first // page_rows + 1, (end - 1) // page_rows + 2)
            self._map.madvise(mmap.MADV_WILLNEED, pages.start * PAGE_BYTES, len(pages) * PAGE_BYTES)

    def damaged_pages(self) -> list[int]:
        """Return the row pages found damaged so far (0 is the first)."""
        return [int(page) for page in np.flatnonzero(self.states == PAGE_DAMAGED)]

    def page_range(self, page: int) -> tuple[int, int]:
        """Return the first and last mixed ID (128-bit) that row page `page` may hold, by the directory."""
        if self.damage:
            return self.record.first, self.record.last
        first, last = verify_kernels.page_range(_address(self.description), page)
        low = max(self.record.first, int(first) << 64)
        return low, min(self.record.last, int(last) << 64 | (1 << 64) - 1)

    def verify(self, first_page: int, pages: int) -> list[int]:
        """Read row pages [first_page, first_page + pages) again; return the damaged ones."""
        if self.damage:
            return [0]
        end = min(len(self.states), first_page + pages)
        verify_kernels.verify_pages(_address(self.description), first_page, end)
        part = self.states[first_page : first_page + pages]
        return [first_page + int(page) for page in np.flatnonzero(part == PAGE_DAMAGED)]

    def verify_tables(self) -> list[str]:
        """Check header, footer, directory and filter; return what is damaged (none of it loses an entry)."""
        if self._map is None or self.damage:
            return []
        data = np.frombuffer(self._map, np.uint8)
        footer = len(data) // PAGE_BYTES - 1
        checks = [
            ("header", _page_good(data, 0, self._seed)),
            ("footer", _page_good(data, footer, self._seed)),
            ("bucket directory", self._directory_good(data)),
            ("filter", not int(self.header["filter_blocks"]) or self._filter_good(data)),
        ]
        return [name for name, good in checks if not good]


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


def is_left_over(path: Path, store_id: bytes) -> bool:
    """Return whether a segment file is this store's own: unfinished (no header yet) or finished."""
    with os_errors("reading", path), open(path, "rb") as file:
        page = file.read(PAGE_BYTES)
    if not any(page):
        return True
    if len(page) < PAGE_BYTES or page[:8] != MAGIC:
        return False
    return bytes(np.frombuffer(page, HEADER, 1)[0]["store"]) == store_id


def _describe(header: np.void, base: int, seed: np.uint64) -> NDArray[np.uint64]:
    description = np.zeros(SEG_FIELDS, np.uint64)
    description[SEG_BASE], description[SEG_SEED] = base, seed
    description[SEG_ROWS], description[SEG_ROW_BYTES] = header["rows"], header["row_bytes"]
    description[SEG_PAGE_ROWS] = header["page_rows"]
    description[SEG_RANGE_BITS], description[SEG_RANGE_FIRST] = header["range_bits"], header["range_first"]
    description[SEG_RANGE_COUNT] = header["range_count"]
    description[SEG_FIRST], description[SEG_LAST] = header["first"][0], header["last"][0]
    packing = Packing(header["low"], header["shift"].astype(np.int64), header["width"].astype(np.int64))
    description[SEG_COLUMNS:] = packing.table().reshape(-1)
    return description


def _build_directory(
    header: np.void, description: NDArray[np.uint64]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return (ranges, buckets) of the rows and enter them in the description; the caller keeps them alive."""
    ranges = np.zeros(int(header["range_count"]) + 1, np.uint32)
    count = directory_kernels.count_ranges(_address(description), ranges)
    buckets = np.zeros(count + 1, np.uint32)
    description[SEG_RANGES], description[SEG_BUCKETS] = ranges.ctypes.data, buckets.ctypes.data
    directory_kernels.fill_buckets(_address(description), buckets)
    return ranges, buckets


def _address(description: NDArray[np.uint64]) -> np.uint64:
    return np.uint64(description.ctypes.data)


def _range_bits(first_high: int, last_high: int, rows: int) -> int:
    """Return the most bits (at most 12) that cut the rows' span of hashes into at most rows / 256 ranges."""
    for bits in range(RANGE_BITS_MAX, 0, -1):
        if (last_high >> (64 - bits)) - (first_high >> (64 - bits)) + 1 <= rows // _RANGE_ROWS:
            return bits
    return 0


def _header_page(header: np.void, seed: np.uint64, page: int) -> bytes:
    out = np.zeros(PAGE_BYTES, np.uint8)
    out[: HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
    out[PAYLOAD_BYTES:] = np.array([page_checksum(out.ctypes.data, seed, page)], np.uint64).view(np.uint8)
    return out.tobytes()


def _page_good(data: NDArray[np.uint8], page: int, seed: np.uint64) -> bool:
    stored = data[page * PAGE_BYTES + PAYLOAD_BYTES : (page + 1) * PAGE_BYTES].copy().view("<u8")[0]
    return bool(page_checksum(data.ctypes.data + page * PAGE_BYTES, seed, page) == stored)


def _round_up(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def _padded(section: bytes) -> bytes:
    return section + bytes(_round_up(len(section)) - len(section))
