"""The framing of RocksDB's log files (its WAL and its MANIFEST), looked at before RocksDB reads them.

    block of 32 KiB:  checksum u4 | length u2 | type u1 | payload    and so on, never across blocks

RocksDB notices all kinds of damage but one: a record whose type says that its file is a recycled one, behind
records that do not say so, is read by it over and over, for ever, with Python's lock held (facebook/rocksdb,
issue 13333; rocksdict 0.3.29 has RocksDB 9.8). One flipped bit is enough. No file of ours is ever recycled.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

from kvmeta.errors import CorruptionError, os_errors

_BLOCK_BYTES = 32 << 10
_HEADER = struct.Struct("<IHB")
_RECYCLED = frozenset({5, 6, 7, 8, 11})  # full, first, middle, last; with user-defined time stamps


def check(directory: Path) -> None:
    """Raise CorruptionError naming the first log file of a database that RocksDB would not come back from."""
    with os_errors("listing", directory):
        files = sorted([*directory.glob("MANIFEST-*"), *directory.glob("*.log")])
    for file in files:
        # A live writer removes what it trimmed.
        with suppress(FileNotFoundError), open(file, "rb") as stream, os_errors("reading", file):
            while block := stream.read(_BLOCK_BYTES):
                if _recycled(block):
                    raise CorruptionError(f"the log is damaged: {file} has a record of a wrong type", file)


def _recycled(block: bytes) -> bool:
    """Return whether a block has a record of a recycled file."""
    at, end = 0, len(block) - _HEADER.size
    while at <= end:
        _, length, kind = _HEADER.unpack_from(block, at)
        if kind in _RECYCLED:
            return True
        at += _HEADER.size + length
    return False
