"""A file system that passes everything on to a directory, with a switch for read errors (FUSE).

    python -m tests.system.failing_reads SOURCE MOUNT SWITCH

While the file SWITCH has lines "NAME FIRST END", reads that touch bytes FIRST to END - 1 of a file NAME fail
with EIO, as on a device with a bad place: a plain read raises, a mapped page ends the process by SIGBUS.
Pages that are in the page cache are read from there. Needs fuse3 and mfusepy.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mfusepy

from tests.system.disks import unmount

WAIT_S = 20.0
_ATTRIBUTES = ("st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid")


class FailingReads(mfusepy.Operations):
    """The operations that a store needs, on files below `source`."""

    use_ns = True  # times are whole nanoseconds

    def __init__(self, source: Path, switch: Path) -> None:
        self._source, self._switch = source, switch

    def _below(self, path: str) -> Path:
        return self._source / path.lstrip("/")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._below(path))
        times = {f"st_{which}time": getattr(found, f"st_{which}time_ns") for which in "acm"}
        return {name: getattr(found, name) for name in _ATTRIBUTES} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(each.name for each in self._below(path).iterdir())]

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._below(path))
        return {
            name: getattr(found, name) for name in ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize")
        }

    def mkdir(self, path: str, mode: int) -> int:
        self._below(path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._below(path).rmdir()
        return 0

    def unlink(self, path: str) -> int:
        self._below(path).unlink()
        return 0

    def rename(self, old: str, new: str) -> int:
        self._below(old).rename(self._below(new))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._below(path).chmod(mode)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._below(path), ns=times)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._below(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._below(path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        name = path.rpartition("/")[2]
        for line in self._switch.read_text().splitlines() if self._switch.exists() else ():
            failing, first, end = line.split()
            if failing == name and offset < int(end) and offset + size > int(first):
                raise mfusepy.FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._below(path), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


@contextmanager
def mounted(source: Path, mount: Path, switch: Path) -> Iterator[Path]:
    """Mount the file system at `mount`, in a process of its own."""
    mount.mkdir()
    command = [sys.executable, "-m", "tests.system.failing_reads", str(source), str(mount), str(switch)]
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + WAIT_S
        while not mount.is_mount():
            assert process.poll() is None, "the file system ended"
            assert time.monotonic() < end, "the file system is not mounted"
            time.sleep(0.02)
        yield mount
    finally:
        if mount.is_mount():
            unmount(mount)
        process.terminate()
        process.wait(WAIT_S)


if __name__ == "__main__":
    source, mount, switch = sys.argv[1:]
    mfusepy.FUSE(FailingReads(Path(source), Path(switch)), mount, foreground=True, nothreads=False)
