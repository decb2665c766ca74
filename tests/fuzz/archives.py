"""Target: the tar scanner, its kernels in plain Python, where an index out of bounds is an IndexError."""

from __future__ import annotations

import tarfile
from typing import Any

from kvmeta.sources.tar import scan
from tests.fuzz.target import Target, scratch
from tests.unit.sources.archives import END, extended, header, padded, pax_records, write_tar

_BLOCK, _SUM_AT, _SUM_BYTES, _MAGIC_AT = 512, 148, 8, 257


def _seeds() -> list[bytes]:
    path = scratch() / "seed.tar"
    members = {"a": b"one", "./b/" + "c/" * 60 + "d": b"two" * 40, "empty": b""}
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    made = [write_tar(path, members, fmt).read_bytes().rstrip(b"\0") for fmt in formats]
    size, sparse = pax_records(path="p" * 120, size="3"), pax_records(GNU__sparse__major="1", path="s")
    gnu = b"ustar  \0"
    long_name = header(b"long", 12, b"L", gnu) + padded(b"n" * 12)
    base_256 = header(b"z", b"\x80" + bytes(10) + b"\2") + padded(b"ab")
    sparse_file = header(b"map", 1, b"S", gnu) + padded(b"d")
    parts = (
        extended(size) + header(b"x", 0) + padded(b"abc"),
        extended(sparse) + header(b"x", 512) + padded(b"m"),
        extended(pax_records(path="everybody"), b"g") + header(b"y", 1) + padded(b"z"),
        long_name + base_256,
        sparse_file + header(b"dir/", 0, b"\0", b"") + header(b"l", 0, b"2"),
    )
    return [part + END for part in (*(padded(each) for each in made), *parts)]


def _decode(data: bytes) -> Any:
    """Scan an archive in windows that cut it often, and few rows at a time."""
    path = scratch() / "fuzzed.tar"
    path.write_bytes(data)
    members = []
    for batch in scan(path, rows_max=3, window_bytes=2 * _BLOCK):
        for row in range(len(batch)):
            assert batch.offsets[row] + batch.lengths[row] <= len(data)
            members.append(batch.name(row))
    return members


def _seal(data: bytes) -> bytes:
    """Make the checksum right of every block that looks like a header."""
    raw = bytearray(data)
    for start in range(0, len(raw) - _BLOCK + 1, _BLOCK):
        block = raw[start : start + _BLOCK]
        if block[_MAGIC_AT : _MAGIC_AT + 5] == b"ustar":
            block[_SUM_AT : _SUM_AT + _SUM_BYTES] = b" " * _SUM_BYTES
            raw[start + _SUM_AT : start + _SUM_AT + _SUM_BYTES] = b"%06o\0 " % sum(block)
    return bytes(raw)


TARGETS = (Target("tar", _seeds, _decode, _seal, replays=1500),)
