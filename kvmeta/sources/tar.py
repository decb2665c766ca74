"""Tar archives as columns: where each member's bytes lie, found at the speed of the disk.

    for members in scan("shard-000000.tar"):       # batches of up to 65,536 rows, in archive order
        members.names, members.name_ends, members.offsets, members.lengths, members.checksums

The archive is read in windows into one buffer, never mapped: it is the user's file and may be cut short by
someone else while we read. Memory stays bounded whatever the members' sizes. Understood are old (v7) tar,
ustar, GNU (long names, base-256 sizes) and PAX. Regular files are members; directories are passed over;
links, devices, sparse files and unknown types are passed over and counted. The archive ends at its two
zero blocks, as tar defines it; one that simply stops is reported as cut short.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvmeta.errors import (
    CorruptionError,
    EngineNotInstalledError,
    FormatError,
    InputError,
    KvmetaError,
    UnavailableError,
    UnsupportedError,
    os_errors,
)
from kvmeta.sources.source import ROWS_MAX, Members

WINDOW_BYTES = 1 << 20  # small enough for the processor's cache, large enough that reads cost nothing
_TEXT_BYTES = 1 << 13
_TEXT_BYTES_MAX = 1 << 24  # an extended header larger than this is damage, not attributes
_NAME_BYTES = 1 << 22
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x1f\x9d": "compress",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"LZIP": "lzip",
}


def scan(
    path: str | Path, *, checksums: bool = True, rows_max: int = ROWS_MAX, window_bytes: int = WINDOW_BYTES
) -> Iterator[Members]:
    """Yield the members of the tar file at `path`, in archive order, up to `rows_max` at a time.

    With `checksums=False` the members' bytes are not looked at (large ones not even read). The last batch may
    be empty where something was skipped after the last member. `window_bytes` is a multiple of 512.

    Raises NotFoundError, UnavailableError or ReadOnlyError where the file cannot be opened or read;
    FormatError where it is not a tar; UnsupportedError for a compressed tar and for a member of 4 GiB or
    more; CorruptionError, naming the byte offset, for a damaged header or an archive that was cut short.
    Batches yielded before an error are right.
    """
    with os_errors("reading", path):
        # O_NONBLOCK: opening a pipe by mistake must not hang; it means nothing for a regular file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnsupportedError(f"{path} is not a regular file; members are read by offset")
            scanner = _Scanner(Path(path), fd, status.st_size, checksums, rows_max, window_bytes)
            yield from scanner.batches()
        finally:
            os.close(fd)


def load_kernels() -> Any:
    """Return the kernels' module; numba takes a second to import, so only a scan does."""
    try:
        from kvmeta.sources import tar_kernels
    except ImportError as error:
        message = f"reading tar files needs numba ({error}): pip install 'kvmeta[engine]'"
        raise EngineNotInstalledError(message) from None
    return tar_kernels


class _Scanner:
    """The buffers of one scan, and what the kernel asks of its caller."""

    def __init__(
        self, path: Path, fd: int, size: int, checksums: bool, rows_max: int, window_bytes: int
    ) -> None:
        if rows_max < 1 or window_bytes < 512 or window_bytes % 512:
            raise InputError("rows_max must be positive and window_bytes a positive multiple of 512")
        self.kernels = load_kernels()
        self.path, self.fd = path, fd
        self.window = np.zeros(window_bytes, np.uint8)
        self.filled = self.base = 0
        self.state = np.zeros(self.kernels.STATE_FIELDS, np.int64)
        for field in (self.kernels.SIZE, self.kernels.GLOBAL_SIZE, self.kernels.GLOBAL_NAME_BYTES):
            self.state[field] = -1
        self.state[self.kernels.ARCHIVE_BYTES] = size
        self.state[self.kernels.CHECKSUMS] = checksums
        self.texts = np.zeros((3, _TEXT_BYTES), np.uint8)
        self.names = np.empty(_NAME_BYTES, np.uint8)
        self.name_ends, self.offsets, self.lengths = (np.empty(rows_max, np.int64) for _ in range(3))
        self.checksums = np.empty(rows_max, np.uint32)

    def batches(self) -> Iterator[Members]:
        """Drive the kernel over the archive and yield what it finds."""
        kernels, state = self.kernels, self.state
        words = self.window.view(np.uint64)
        while True:
            answer = kernels.scan_window(
                self.window, words, self.filled, self.base, state, self.texts,
                self.names, self.name_ends, self.offsets, self.lengths, self.checksums,
            )  # fmt: skip
            if answer == kernels.MORE:
                if not self._read():
                    break
            elif answer == kernels.ROWS_FULL or (answer == kernels.NAMES_FULL and state[kernels.ROWS]):
                yield self._take()
            elif answer == kernels.NAMES_FULL:
                self.names = np.empty(int(state[kernels.WANTED]), np.uint8)
            elif answer == kernels.TEXTS_FULL:
                self._widen_texts(int(state[kernels.WANTED]))
            elif answer == kernels.END:
                break
            else:
                yield from self._fail(answer)
        if state[kernels.ROWS] or state[kernels.SKIPPED]:
            yield self._take()
        if answer != kernels.END:
            self._check_end()

    def _read(self) -> bool:
        """Fill the window from the block the scan stands at; False at the end of the file."""
        at = int(self.state[self.kernels.POSITION])
        self.base, self.filled = at, 0
        view = memoryview(self.window)  # type: ignore[arg-type]
        while self.filled < len(self.window):
            n = os.preadv(self.fd, [view[self.filled :]], at + self.filled)
            if not n:
                break
            self.filled += n
        # The kernel reads whole blocks; what follows the last whole one can only be a cut.
        return self.filled >= self.kernels.BLOCK or self._short_of_block()

    def _short_of_block(self) -> bool:
        inside = self.state[self.kernels.PHASE] in (self.kernels.IN_FILE, self.kernels.IN_EXTENSION)
        return bool(inside and self.filled and self.state[self.kernels.LEFT] <= self.filled)

    def _take(self) -> Members:
        """Return the finished rows as columns of their own and make room for the next."""
        kernels, state = self.kernels, self.state
        rows, used = int(state[kernels.ROWS]), int(state[kernels.NAMES_USED])
        members = Members(
            self.names[:used].copy(),
            self.name_ends[:rows].copy(),
            self.offsets[:rows].astype(np.uint64),
            self.lengths[:rows].astype(np.uint64),
            self.checksums[:rows].copy(),
            int(state[kernels.SKIPPED]),
        )
        state[kernels.ROWS] = state[kernels.NAMES_USED] = state[kernels.SKIPPED] = 0
        return members

    def _widen_texts(self, wanted: int) -> None:
        if wanted > _TEXT_BYTES_MAX:
            raise self._damage(f"an extended header claims {wanted:,} bytes")
        wider = np.zeros((3, wanted), np.uint8)
        wider[:, : self.texts.shape[1]] = self.texts
        self.texts = wider

    def _fail(self, answer: int) -> Iterator[Members]:
        """Yield the members before the fault, then raise it."""
        kernels, state = self.kernels, self.state
        error = self._fault(answer)
        if state[kernels.ROWS] or state[kernels.SKIPPED]:
            yield self._take()
        raise error

    def _fault(self, answer: int) -> KvmetaError:
        kernels, state = self.kernels, self.state
        if answer == kernels.TOO_LONG:
            row, start = int(state[kernels.ROWS]), int(state[kernels.NAMES_USED])
            name = self.names[start : int(self.name_ends[row])].tobytes().decode("utf-8", "backslashreplace")
            return UnsupportedError(
                f"{self.path}: member {name!r} has {int(state[kernels.WANTED]):,} bytes; "
                "a file of 4 GiB or more cannot be indexed, split it"
            )
        if answer == kernels.BAD_CHECKSUM and state[kernels.BLOCK_AT] == 0:
            return self._not_a_tar()
        if answer == kernels.PAST_END:
            return self._cut_short("the member's bytes go beyond the end of the file")
        what = {
            kernels.BAD_CHECKSUM: "the header's checksum does not match",
            kernels.BAD_NUMBER: "the header's size is not a number",
            kernels.BAD_PAX: "the extended header's records are malformed",
            kernels.LONE_ZERO_BLOCK: "a header follows a single zero block",
        }
        return self._damage(what[answer])

    def _not_a_tar(self) -> KvmetaError:
        head = self.window[: min(self.filled, 512)].tobytes()
        for magic, kind in _COMPRESSED.items():
            if head.startswith(magic):
                return UnsupportedError(
                    f"{self.path} is compressed ({kind}): offsets into a compressed file cannot be read "
                    "directly. Unpack it first"
                )
        if head[257:262] == b"ustar":
            cut = len(head) < self.kernels.BLOCK
            return self._damage("the archive is cut short" if cut else "the header's checksum does not match")
        return FormatError(f"{self.path} is not a tar file: it does not begin with a tar header")

    def _check_end(self) -> None:
        """Raise unless the file ended where a tar may end: after at least one zero block."""
        kernels, state = self.kernels, self.state
        position = int(state[kernels.POSITION])
        if position == 0:
            raise self._not_a_tar()
        if state[kernels.ZERO_BLOCKS] and state[kernels.PHASE] == kernels.IN_HEADERS:
            return
        state[kernels.BLOCK_AT] = position
        raise self._cut_short("the file ends without the two zero blocks that end an archive")

    def _cut_short(self, why: str) -> KvmetaError:
        if os.fstat(self.fd).st_size < self.state[self.kernels.ARCHIVE_BYTES]:
            return UnavailableError(f"{self.path} became shorter while it was read; run again")
        return self._damage(f"{why}; the archive is cut short")

    def _damage(self, what: str) -> CorruptionError:
        offset = int(self.state[self.kernels.BLOCK_AT])
        return CorruptionError(f"{self.path}: damaged at byte {offset:,}: {what}", path=self.path)
