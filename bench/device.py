"""The disk below a store: its files made cold, its reads counted, its own speed measured by fio.

Reads are counted by the kernel for the whole device (/sys/dev/block): nothing else should read meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from bench.proc import io_bytes

_FIO_FILES = 16
_PAGE_BYTES, _SECTOR_BYTES = 4096, 512


class Counters(NamedTuple):
    """What a device has done: reads, bytes read, and requests in flight integrated over time (seconds)."""

    at: float
    reads: int
    read_bytes: int
    queued_s: float


class Reads(NamedTuple):
    """What it did between two moments: reads, bytes, seconds, requests in flight on average."""

    reads: int
    read_bytes: int
    seconds: float
    depth: float


class Device:
    """The block device below `path`.

    Where there is none to be seen, as below a container's overlay, the 4 KiB pages that this process has read
    from storage are counted instead, and nothing is known of requests in flight.
    """

    def __init__(self, path: Path) -> None:
        number = path.stat().st_dev
        self._stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")

    def counters(self) -> Counters:
        """Return what it has done so far."""
        if not self._stat.exists():
            read = io_bytes("read_bytes")
            return Counters(time.perf_counter(), read // _PAGE_BYTES, read, 0.0)
        words = [int(word) for word in self._stat.read_text().split()]
        return Counters(time.perf_counter(), words[0], words[2] * _SECTOR_BYTES, words[10] / 1e3)

    def since(self, start: Counters) -> Reads:
        """Return what it has done since `start`."""
        end = self.counters()
        spent = end.at - start.at
        depth = (end.queued_s - start.queued_s) / spent
        return Reads(end.reads - start.reads, end.read_bytes - start.read_bytes, spent, depth)


def make_cold(directory: Path) -> None:
    """Drop the files below from memory; nobody may have them mapped."""
    os.sync()
    for file in directory.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def fio_missing() -> str:
    """Return why the device's own speed cannot be measured, "" if it can."""
    return "" if shutil.which("fio") else "fio not found (make bench-peers-install)"


def random_reads(files: list[Path], depth: int, for_s: float) -> float:
    """Return the random 4 KiB reads a second that fio gets from these files, `depth` in flight, no cache."""
    names = ":".join(str(file).replace(":", r"\:") for file in files[:_FIO_FILES])
    command = [
        "fio", "--name=reads", f"--filename={names}", "--rw=randread", "--bs=4k", "--ioengine=libaio",
        "--direct=1", f"--iodepth={depth}", f"--runtime={for_s:g}", "--time_based", "--readonly",
        "--randrepeat=0", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["iops"])
