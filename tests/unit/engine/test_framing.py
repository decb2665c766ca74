"""Log files that RocksDB would read for ever."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvmeta.engine import framing
from kvmeta.errors import CorruptionError

BLOCK = 32 << 10


def record(size: int, kind: int = 1) -> bytes:
    return struct.pack("<IHB", 0x05050505, size, kind) + b"\x05" * size


@pytest.mark.parametrize("name", ["MANIFEST-000007", "000012.log"])
@pytest.mark.parametrize("kind", [5, 6, 7, 8, 11])
@pytest.mark.parametrize(
    "before", [b"", record(40) * 3, record(BLOCK - 7 - 3) + b"\0" * 3, record(BLOCK - 7)]
)
def test_a_record_of_a_recycled_file_is_refused_wherever_it_is(
    tmp_path: Path, name: str, kind: int, before: bytes
) -> None:
    (tmp_path / name).write_bytes(before + record(40, kind) + record(40))
    with pytest.raises(CorruptionError, match=name):
        framing.check(tmp_path)


@pytest.mark.parametrize("tail", [b"", record(40)[:5], record(40)[:30], bytes(500)], ids=len)
def test_an_unfinished_tail_left_by_a_kill_is_accepted(tmp_path: Path, tail: bytes) -> None:
    blocks = record(BLOCK - 7, 2) + record(100, 4) + record(50) * 3
    (tmp_path / "000012.log").write_bytes(blocks + tail)
    (tmp_path / "MANIFEST-000007").write_bytes(record(40) * 5 + tail)
    (tmp_path / "OPTIONS-000003").write_bytes(record(40, 5))  # another kind of file
    framing.check(tmp_path)
