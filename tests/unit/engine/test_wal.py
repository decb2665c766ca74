from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvmeta.engine import wal
from kvmeta.engine.wal import WAL_START, Position
from kvmeta.errors import CorruptionError
from tests.unit.engine.rows import random_rows

LOG = Path("log")


def chain(kinds: list[int], n: int = 100) -> list[tuple[bytes, bytes]]:
    position, out = WAL_START, []
    for i, kind in enumerate(kinds):
        rows = random_rows(n, seed=i, version=(i + 1) << 23)
        if kind == wal.RELOCATE:
            rows[:, 2] += np.arange(n, dtype=np.uint64)
        position, value = wal.encode(position, 1, kind, rows)
        out.append((wal.key(position.sequence), value))
    return out


@pytest.mark.parametrize("n", [1, 63, 64, 4096])
@pytest.mark.parametrize("kind", [wal.PUT, wal.DELETE, wal.RELOCATE])
def test_a_record_decodes_to_the_rows_it_was_made_from(kind: int, n: int) -> None:
    rows = random_rows(n)
    if kind == wal.RELOCATE:
        rows[:, 2] += np.arange(n, dtype=np.uint64)
    if kind == wal.DELETE:
        rows[:, 3:] = 0
    position, value = wal.encode(Position(7, 99), 3, kind, rows)
    record = wal.decode(8, Position(7, 99), value, LOG)
    assert record.position == position
    assert (record.dataset, record.kind) == (3, kind)
    assert (record.rows == rows).all()


def test_columns_are_compressed_only_if_that_shrinks_them() -> None:
    dull = random_rows(4096)
    dull[:, 3:] = 5
    assert len(wal.encode(WAL_START, 1, wal.PUT, dull)[1]) < 4096 * 18
    noise = random_rows(4096)
    noise[:, 3:] = np.random.default_rng(0).integers(0, 2**64, (4096, 3), np.uint64)
    assert len(wal.encode(WAL_START, 1, wal.PUT, noise)[1]) == 4096 * 40 + wal.RECORD.itemsize


def test_a_whole_chain_replays_in_order() -> None:
    records = list(wal.replay(chain([wal.PUT, wal.DELETE, wal.RELOCATE] * 3), WAL_START, LOG))
    assert [record.position.sequence for record in records] == list(range(1, 10))


@pytest.mark.parametrize("change", ["drop", "repeat", "swap", "foreign"])
def test_a_broken_chain_is_refused(change: str) -> None:
    records = chain([wal.PUT] * 6)
    if change == "drop":
        del records[3]
    elif change == "repeat":
        records[3] = records[2]
    elif change == "swap":
        records[2], records[3] = (records[2][0], records[3][1]), (records[3][0], records[2][1])
    else:
        records[3] = (records[3][0], chain([wal.DELETE] * 6)[3][1])
    with pytest.raises(CorruptionError, match="WAL record"):
        list(wal.replay(records, WAL_START, LOG))


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    ((_, value),) = chain([wal.PUT], n=3)
    for bit in range(8 * len(value)):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError):
            wal.decode(1, WAL_START, bytes(damaged), LOG)
    for size in range(len(value)):
        with pytest.raises(CorruptionError):
            wal.decode(1, WAL_START, value[:size], LOG)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", 0xFFFFFFFF), ("rows", 99), ("column_bytes", 0xFFFFFFFF), ("column_bytes", 0), ("kind", 0),
     ("kind", 2), ("kind", 4), ("codec", 1), ("codec", 7)],
)  # fmt: skip
def test_a_false_header_is_refused_before_allocating_memory(field: str, value: int) -> None:
    ((_, whole),) = chain([wal.PUT], n=3)
    header = np.frombuffer(whole, wal.RECORD, 1)[0].copy()
    header[field], header["checksum"] = value, 0
    payload = whole[wal.RECORD.itemsize :]
    header["checksum"] = xxhash.xxh3_64_intdigest((1).to_bytes(8, "little") + header.tobytes() + payload)
    with pytest.raises(CorruptionError, match="not one that a writer writes"):
        wal.decode(1, WAL_START, header.tobytes() + payload, LOG)
