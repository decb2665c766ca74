"""The write-ahead log: one record a batch, packed columns, chained.

The key is the sequence (u8, big-endian). The value is a 40-byte header (`RECORD`) and the columns: mixed IDs
(16 n bytes), then, lz4-compressed where that shrinks them, locations (24 n; all but deletes) and versions
(8 n; relocates and applies). The checksum, XXH3-64 over sequence, header and payload, is the next record's
`previous`: a missing, repeated or foreign record breaks the chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lz4.block
import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION, WORD3
from kvmeta.errors import CorruptionError

PUT, DELETE, RELOCATE, APPLY = 1, 2, 3, 4
_COLUMN_BYTES = {PUT: 24, DELETE: 0, RELOCATE: 32, APPLY: 32}  # of a row
_OWN_VERSIONS = (RELOCATE, APPLY)  # a version for each row, not one for all
_RAW, _LZ4 = 0, 1
_LZ4_ROWS_MIN = 64

RECORD = np.dtype(
    [
        ("dataset", "<u4"),
        ("kind", "u1"),
        ("codec", "u1"),
        ("reserved", "<u2"),
        ("rows", "<u4"),
        ("column_bytes", "<u4"),  # of locations and versions before compression
        ("version", "<u8"),  # of every row; 0 where rows carry their own
        ("previous", "<u8"),
        ("checksum", "<u8"),
    ]
)


Header = np.void | NDArray[np.void]


class Position(NamedTuple):
    """A place in the chain: the last sequence and its record's checksum."""

    sequence: int
    checksum: int


WAL_START = Position(0, 0)


@dataclass(frozen=True)
class Record:
    """One decoded record: rows u8[n, 6] ready for a memtable."""

    position: Position
    dataset: int
    kind: int
    rows: NDArray[np.uint64]


def key(sequence: int) -> bytes:
    """Return the key of the record with `sequence`."""
    return sequence.to_bytes(8, "big")


def encode(before: Position, dataset: int, kind: int, rows: NDArray[np.uint64]) -> tuple[Position, bytes]:
    """Return the record of `rows` (u8[n, 6]) that follows `before`, and its position."""
    sequence = before.sequence + 1
    parts = []
    if kind != DELETE:
        parts.append(rows[:, WORD3:].tobytes())
    if kind in _OWN_VERSIONS:
        parts.append(rows[:, VERSION].tobytes())
    columns = b"".join(parts)
    header = np.zeros((), RECORD)
    header["dataset"], header["kind"], header["rows"] = dataset, kind, len(rows)
    header["column_bytes"] = len(columns)
    header["version"] = 0 if kind in _OWN_VERSIONS else rows[0, VERSION]
    header["previous"] = before.checksum
    if len(rows) >= _LZ4_ROWS_MIN and columns:
        packed = lz4.block.compress(columns, mode="fast", acceleration=4, store_size=False)
        if len(packed) < len(columns):
            header["codec"], columns = _LZ4, packed
    payload = rows[:, : LOW + 1].tobytes() + columns
    checksum = _checksum(sequence, header, payload)
    header["checksum"] = checksum
    return Position(sequence, checksum), header.tobytes() + payload


def decode(sequence: int, before: Position, value: bytes, path: Path) -> Record:
    """Return the record `value` with `sequence`; CorruptionError where it does not follow `before`."""

    def damaged(why: str) -> CorruptionError:
        return CorruptionError(f"{path}: WAL record {sequence} {why}", path)

    if sequence != before.sequence + 1:
        raise damaged(f"follows record {before.sequence}; the ones between are missing")
    if len(value) < RECORD.itemsize:
        raise damaged(f"has {len(value)} bytes")
    header = np.frombuffer(value, RECORD, 1)[0].copy()
    checksum, header["checksum"] = int(header["checksum"]), 0
    payload = value[RECORD.itemsize :]
    if _checksum(sequence, header, payload) != checksum:
        raise damaged("has a wrong checksum")
    if int(header["previous"]) != before.checksum:
        raise damaged("does not belong to the record before it")
    try:
        rows = _rows(header, payload)
    except (ValueError, lz4.block.LZ4BlockError) as error:
        raise damaged(f"is not one that a writer writes ({error})") from None
    return Record(Position(sequence, checksum), int(header["dataset"]), int(header["kind"]), rows)


def replay(records: Iterable[tuple[bytes, bytes]], before: Position, path: Path) -> Iterator[Record]:
    """Yield the decoded records that follow `before`, checking the chain."""
    for record_key, value in records:
        record = decode(int.from_bytes(record_key, "big"), before, value, path)
        before = record.position
        yield record


def _rows(header: np.void, payload: bytes) -> NDArray[np.uint64]:
    """Return the rows of a record; ValueError or LZ4BlockError where header and payload do not agree."""
    n, kind, codec = int(header["rows"]), int(header["kind"]), int(header["codec"])
    size = int(header["column_bytes"])
    if kind not in _COLUMN_BYTES or codec not in (_RAW, _LZ4) or size != n * _COLUMN_BYTES[kind]:
        raise ValueError(f"{n} rows of kind {kind}, codec {codec}, have {size} bytes of columns")
    ids, columns = payload[: 16 * n], payload[16 * n :]
    if len(ids) != 16 * n:
        raise ValueError(f"{len(payload)} bytes are too few for {n} rows")
    if codec == _LZ4:
        columns = lz4.block.decompress(columns, uncompressed_size=size)
    if len(columns) != size:
        raise ValueError(f"{len(columns)} bytes of columns, not {size}")
    rows = np.zeros((n, ROW_WORDS), np.uint64)
    rows[:, HIGH : LOW + 1] = np.frombuffer(ids, "<u8").reshape(n, 2)
    if kind != DELETE:
        rows[:, WORD3:] = np.frombuffer(columns, "<u8", 3 * n).reshape(n, 3)
    if kind in _OWN_VERSIONS:
        rows[:, VERSION] = np.frombuffer(columns, "<u8", n, 24 * n)
    else:
        rows[:, VERSION] = header["version"]
    return rows


def _checksum(sequence: int, header: Header, payload: bytes) -> int:
    digest = xxhash.xxh3_64(sequence.to_bytes(8, "little") + header.tobytes())
    digest.update(payload)
    return int(digest.intdigest())
