"""The names of a store's files, which nothing else knows, and making them durable.

KVMETA                 the store's identity (JSON): format, store ID, seed
LOCK                   held by the writer (flock)
MARK                   what was last acknowledged
SEAL                   fingerprints of the log's files, written when the store is closed
log/                   RocksDB: the WAL and the manifest
segments/00000001.seg  immutable segment files
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kvmeta.errors import os_errors

_SEGMENT = re.compile(r"(\d{8,})\.seg")


def identity(store: Path) -> Path:
    """Return the path of the identity file."""
    return store / "KVMETA"


def lock(store: Path) -> Path:
    """Return the path of the writer's lock."""
    return store / "LOCK"


def mark(store: Path) -> Path:
    """Return the path of the mark."""
    return store / "MARK"


def seal(store: Path) -> Path:
    """Return the path of the seal."""
    return store / "SEAL"


def log(store: Path) -> Path:
    """Return the path of the RocksDB directory."""
    return store / "log"


def segments(store: Path) -> Path:
    """Return the directory of the segment files."""
    return store / "segments"


def segment(store: Path, number: int) -> Path:
    """Return the path of segment `number`."""
    return segments(store) / f"{number:08d}.seg"


def segment_number(path: Path) -> int | None:
    """Return the number a segment's file name says, None for any other name."""
    match = _SEGMENT.fullmatch(path.name)
    return int(match[1]) if match else None


def is_scratch(file: Path) -> bool:
    """Return whether a file of the log holds nothing: RocksDB's lock and diary, rocksdict's settings."""
    return file.name in ("LOCK", "rocksdict-config.json") or file.name.startswith("LOG")


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write all of `data` at byte `at` of an open file."""
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def exists(path: Path) -> bool:
    """Return whether a file is there; a typed error where the device does not say."""
    with os_errors("looking for", path):
        return path.exists()


def sync_directory(directory: Path) -> None:
    """Make creations, renames and removals in `directory` durable."""
    with os_errors("syncing", directory):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
