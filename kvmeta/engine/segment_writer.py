"""Writing a segment: sorted rows in, an immutable file out. The header is written last, by `seal`."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine import filenames
from kvmeta.engine.kernels import directory as directory_kernels
from kvmeta.engine.kernels import rows as row_kernels
from kvmeta.engine.kernels.layout import BLOCK_BYTES, HIGH, LOW, ROW_WORDS, SEG_BLOCKS, SEG_FILTER, VERSION
from kvmeta.engine.page import PAGE_BYTES, Bounds, Packing
from kvmeta.engine.segment_description import address_of, build_directory, describe
from kvmeta.engine.segment_header import (
    HEADER,
    MAGIC,
    RANGE_BITS_MAX,
    SegmentRecord,
    file_seed,
    header_page,
    record_of,
    round_up,
)
from kvmeta.errors import os_errors
from kvmeta.version import TOMBSTONE

_RANGE_ROWS = 256  # rows a hash range should have at least, so that ranges cost at most 1/64 byte an entry
_WRITE_PAGES = 256
_SYNC_BYTES = 1 << 22


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
        self._fd = -1
        with os_errors("creating", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._write(bytes(PAGE_BYTES))
        except BaseException:
            self.abandon()
            raise

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
        header["base"], header["largest"] = self._packing.base, self._bounds.high
        header["shift"], header["width"] = self._packing.shift, self._packing.width
        bits = _range_bits(self._first[0], self._last[0], self.rows)
        header["range_bits"] = bits
        header["range_first"] = self._first[0] >> (64 - bits) if bits else 0
        header["range_count"] = (self._last[0] >> (64 - bits) if bits else 0) - int(header["range_first"]) + 1
        with os_errors("writing", self.path), mmap.mmap(self._fd, self._bytes, prot=mmap.PROT_READ) as pages:
            self._write_tables(np.frombuffer(pages, np.uint8).ctypes.data)
        self._bytes += PAGE_BYTES  # the footer's
        header["file_bytes"] = self._bytes
        # A bulk load keeps many finished segments, but no file open for each.
        with os_errors("writing", self.path):
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _write_tables(self, base: int) -> None:
        header = self._header
        description = describe(header, base, self._seed)
        tables = build_directory(header, description)
        assert tables is not None  # rows come in order
        ranges, buckets = tables
        header["buckets"], header["directory_offset"] = len(buckets) - 1, self._bytes
        section = _padded(ranges.tobytes() + buckets.tobytes())
        header["directory_checksum"] = xxhash.xxh3_64_intdigest(section)
        self._write(section)
        if self._filter_bits:
            blocks = max(1, self.rows * self._filter_bits // (8 * BLOCK_BYTES))
            bits = np.zeros(blocks * BLOCK_BYTES, np.uint8)
            description[SEG_FILTER], description[SEG_BLOCKS] = bits.ctypes.data, blocks
            directory_kernels.fill_filter(address_of(description))
            header["filter_blocks"], header["filter_offset"] = blocks, self._bytes
            section = _padded(bits.tobytes())
            header["filter_checksum"] = xxhash.xxh3_64_intdigest(section)
            self._write(section)

    def seal(self, version_offset: int = 0) -> SegmentRecord:
        """Write header and footer, fsync and close. `version_offset` is added to every row's version."""
        header = self._header
        header["lowest_version"] = self._versions[0] + version_offset
        header["highest_version"] = self._versions[1] + version_offset
        header["base"][VERSION] += np.uint64(version_offset)
        header["largest"][VERSION] += np.uint64(version_offset)
        with os_errors("writing", self.path):
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                filenames.write_at(fd, header_page(header, self._seed, 0), 0)
                last = self._bytes // PAGE_BYTES - 1
                filenames.write_at(fd, header_page(header, self._seed, last), last * PAGE_BYTES)
                os.fsync(fd)
            finally:
                os.close(fd)
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


def _range_bits(first_high: int, last_high: int, rows: int) -> int:
    """Return the most bits (at most 12) that cut the rows' span of hashes into at most rows / 256 ranges."""
    for bits in range(RANGE_BITS_MAX, 0, -1):
        if (last_high >> (64 - bits)) - (first_high >> (64 - bits)) + 1 <= rows // _RANGE_ROWS:
            return bits
    return 0


def _padded(section: bytes) -> bytes:
    return section + bytes(round_up(len(section)) - len(section))
