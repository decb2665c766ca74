"""A segment: an immutable file of packed rows in the order of their mixed IDs, at most 256 MiB.

    page 0            header: everything needed to read the rest (`HEADER`)
    pages 1..p        rows, packed, each page with its checksum
    directory         ranges u4[], buckets u4[], padded to a page
    filter            blocks of 64 bytes, padded to a page (upper runs only)
    last page         the header again

The header is written last, so a file without one is a write that did not finish. Every byte is covered: pages
by their own checksum (seeded with store, file and page number, so a page in the wrong place fails too),
directory and filter by checksums in the header. Read by mmap; a segment is never changed or truncated.

Where the device cannot read a mapped page, the kernel ends the process (SIGBUS). So a file that is suspected
is *probed* first, by plain reads; its pages that cannot be read are damaged, and never touched.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels import verify as verify_kernels
from kvmeta.engine.kernels.layout import (
    BLOCK_BYTES,
    PAGE_DAMAGED,
    SEG_BLOCKS,
    SEG_BUCKETS,
    SEG_FIELDS,
    SEG_FILTER,
    SEG_FIRST,
    SEG_LAST,
    SEG_PAGE_ROWS,
    SEG_RANGE_COUNT,
    SEG_RANGES,
    SEG_ROW_BYTES,
    SEG_ROWS,
    SEG_STATES,
)
from kvmeta.engine.page import PAGE_BYTES, Bounds
from kvmeta.engine.segment_description import address_of, build_directory, describe
from kvmeta.engine.segment_header import (
    HEADER,
    SegmentRecord,
    directory_bytes,
    file_seed,
    is_sound,
    page_good,
    record_of,
    round_up,
)
from kvmeta.errors import CorruptionError, os_errors

_PROBE_BYTES = 1 << 20


class Segment:
    """An open segment: its mapping, its description for the kernels, and which of its pages are damaged.

    A file that cannot be used at all (missing, cut, foreign, both headers bad, unreadable outside its row
    pages) still opens, with `damage` saying why: then every ID between its first and last fails, and all
    others are answered. `unreadable` are the row pages that the device cannot read, where it was probed.
    """

    def __init__(
        self,
        path: Path,
        record: SegmentRecord,
        store_id: bytes,
        known_damage: tuple[int, ...] = (),
        *,
        probe: bool = False,
    ) -> None:
        self.path = path
        self.record = record
        self.damage: str | None = None
        self.unreadable: tuple[int, ...] = ()
        self._seed = np.uint64(file_seed(store_id, record.number))
        self._map: mmap.mmap | None = None
        self.header = np.zeros(1, HEADER)[0]
        self.states = np.zeros(1, np.uint8)
        self.description = np.zeros(SEG_FIELDS, np.uint64)
        self._tables: tuple[NDArray[np.uint32], ...] = ()
        try:
            self._open(store_id, probe=probe)
            for page in known_damage:  # looked at again: the file may have been restored from a copy
                self.verify(page, 1)
        except CorruptionError as error:
            self.damage = str(error)
            self._describe_as_lost()

    def _open(self, store_id: bytes, *, probe: bool) -> None:
        with os_errors("opening", self.path):
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise CorruptionError(f"{self.path} is missing", self.path) from None
            try:
                size = os.fstat(fd).st_size
                if size != self.record.file_bytes or size < 2 * PAGE_BYTES:
                    raise CorruptionError(
                        f"{self.path} has {size} bytes, not the {self.record.file_bytes} that were written",
                        self.path,
                    )
                unreadable = _probe(fd, size) if probe else []
                self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        data = np.frombuffer(self._map, np.uint8)
        last = size // PAGE_BYTES - 1
        for page in (0, last):
            if page not in unreadable and page_good(data, page, self._seed):
                self.header = data[page * PAGE_BYTES :][: HEADER.itemsize].copy().view(HEADER)[0]
                break
        else:
            raise CorruptionError(f"{self.path}: header and footer are damaged", self.path)
        if bytes(self.header["store"]) != store_id or record_of(self.header) != self.record:
            raise CorruptionError(f"{self.path} is not the file the manifest names", self.path)
        if not is_sound(self.header):  # kernels trust it
            raise CorruptionError(f"{self.path}: the header contradicts itself", self.path)
        self.states = np.zeros(int(self.header["row_pages"]), np.uint8)
        self.description = describe(self.header, data.ctypes.data, self._seed)
        self.description[SEG_STATES] = self.states.ctypes.data
        if any(not 1 <= page <= len(self.states) for page in unreadable):
            raise CorruptionError(f"{self.path}: its header, directory or filter cannot be read", self.path)
        self.unreadable = tuple(page - 1 for page in unreadable)
        self.states[list(self.unreadable)] = PAGE_DAMAGED
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
            if self.verify(0, len(self.states)):
                raise CorruptionError(
                    f"{self.path}: the bucket directory and row pages are damaged", self.path
                )
            tables = build_directory(self.header, self.description)
            if tables is None:
                raise CorruptionError(f"{self.path}: the rows are not in order", self.path)
            self._tables = tables
        if int(self.header["filter_blocks"]) and self._filter_good(
            data
        ):  # without one, lookups read the page
            self.description[SEG_FILTER] = data.ctypes.data + int(self.header["filter_offset"])
            self.description[SEG_BLOCKS] = self.header["filter_blocks"]

    def _directory_good(self, data: NDArray[np.uint8]) -> bool:
        offset, size = int(self.header["directory_offset"]), directory_bytes(self.header)
        section = data[offset : offset + round_up(size)]
        if xxhash.xxh3_64_intdigest(section.data) != int(self.header["directory_checksum"]):
            return False
        words = section[:size].view("<u4")
        ranges, buckets = np.split(words, [int(self.header["range_count"]) + 1])
        return _rises(ranges, int(self.header["buckets"])) and _rises(buckets, int(self.header["rows"]))

    def _filter_good(self, data: NDArray[np.uint8]) -> bool:
        offset = int(self.header["filter_offset"])
        section = data[offset : offset + round_up(int(self.header["filter_blocks"]) * BLOCK_BYTES)]
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
        return Bounds(self.header["base"].copy(), self.header["largest"].copy(), shift)

    @property
    def tables_bytes(self) -> int:
        """Return the bytes of directory, filter and page states: what lookups need besides the pages."""
        if self.damage:
            return 0
        return (
            directory_bytes(self.header) + int(self.header["filter_blocks"]) * BLOCK_BYTES + len(self.states)
        )

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
        first, last = verify_kernels.page_range(address_of(self.description), page)
        low = max(self.record.first, int(first) << 64)
        return low, min(self.record.last, int(last) << 64 | (1 << 64) - 1)

    def verify(self, first_page: int, pages: int) -> list[int]:
        """Read row pages [first_page, first_page + pages) again, where readable; return the damaged ones."""
        if self.damage:
            return [0]
        end = min(len(self.states), first_page + pages)
        start = first_page
        for stop in (*(page for page in self.unreadable if first_page <= page < end), end):
            verify_kernels.verify_pages(address_of(self.description), start, stop)
            start = stop + 1
        part = self.states[first_page : first_page + pages]
        return [first_page + int(page) for page in np.flatnonzero(part == PAGE_DAMAGED)]

    def verify_tables(self) -> list[str]:
        """Check header, footer, directory and filter; return what is damaged (none of it loses an entry)."""
        if self._map is None or self.damage:
            return []
        data = np.frombuffer(self._map, np.uint8)
        footer = len(data) // PAGE_BYTES - 1
        checks = [
            ("header", page_good(data, 0, self._seed)),
            ("footer", page_good(data, footer, self._seed)),
            ("bucket directory", self._directory_good(data)),
            ("filter", not int(self.header["filter_blocks"]) or self._filter_good(data)),
        ]
        return [name for name, good in checks if not good]


def _probe(fd: int, size: int) -> list[int]:
    """Return the pages of an open file that the device cannot read, in order."""
    unreadable, at, chunk = [], 0, _PROBE_BYTES
    while at < size:
        try:
            got = len(os.pread(fd, min(chunk, size - at), at))
        except OSError:
            got = 0
        if got:  # up to a page that fails a read returns less
            at, chunk = at + got, _PROBE_BYTES
        elif chunk > PAGE_BYTES:  # some file systems fail a large read as a whole
            chunk = PAGE_BYTES
        else:
            unreadable.append(at // PAGE_BYTES)
            at = (at // PAGE_BYTES + 1) * PAGE_BYTES
    return unreadable


def _rises(table: NDArray[np.uint32], last: int) -> bool:
    """Return whether a table of the directory goes from 0 to `last` and never falls."""
    return bool(table[0] == 0 and table[-1] == last and (table[1:] >= table[:-1]).all())
