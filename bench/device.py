"""The disk below a store: its files made cold, its reads counted, its own speed measured by fio.

Reads are counted by the kernel for the whole device (/sys/dev/block), so nothing else should read meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

_FIO_FILES = 16


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
    """The block device below `path`; ValueError where there is none, as on tmpfs."""

    def __init__(self, path: Path) -> None:
        number = path.stat().st_dev
        self._stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
        if not self._stat.exists():
            raise ValueError(f"{path} is on no block device of its own")

    def counters(self) -> Counters:
        """Return what it has done so far."""
        words = [int(word) for word in self._stat.read_text().split()]
        return Counters(time.perf_counter(), words[0], words[2] * 512, words[10] / 1e3)

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


def is_on_disk(path: Path | str) -> bool:
    """Return whether reads of a path can be counted."""
    try:
        Device(Path(path))
    except ValueError:
        return False
    return True


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
