"""Hints: kept, bounded, read back, and whole after a crash."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvmeta.errors import UnavailableError
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.hints import HintFiles


def rows(n: int, start: int = 0) -> np.ndarray:
    return np.arange(start * 6, (start + n) * 6, dtype=np.uint64).reshape(n, 6)


def test_what_is_kept_is_read_in_order(tmp_path: Path) -> None:
    hints = HintFiles(FileDisk(tmp_path))
    hints.add(3, "default", rows(5))
    hints.add(3, "other@1", rows(2, 5))
    hints.add(4, "default", rows(1))
    assert hints.waiting() == {3: 7, 4: 1}
    read = list(hints.read(3))
    assert [hint.dataset for hint in read] == ["default", "other@1"]
    assert (read[0].rows == rows(5)).all()
    assert hints.done(3, read[-1].end)
    assert hints.waiting() == {4: 1}
    assert list(hints.read(3)) == []


def test_what_comes_meanwhile_stays(tmp_path: Path) -> None:
    hints = HintFiles(FileDisk(tmp_path))
    hints.add(0, "default", rows(1))
    (hint,) = hints.read(0)
    hints.add(0, "default", rows(1))
    assert not hints.done(0, hint.end)
    assert hints.waiting() == {0: 2}


def test_hints_outlive_the_node_and_lose_only_a_torn_end(tmp_path: Path) -> None:
    HintFiles(FileDisk(tmp_path)).add(7, "default", rows(3))
    HintFiles(FileDisk(tmp_path)).add(7, "default", rows(4))
    whole = (tmp_path / "hints" / "7").read_bytes()
    for cut in range(len(whole)):
        (tmp_path / "hints" / "7").write_bytes(whole[:cut])
        waiting = HintFiles(FileDisk(tmp_path)).waiting()
        assert waiting in ({}, {7: 3}), cut
    (tmp_path / "hints" / "7").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = HintFiles(FileDisk(tmp_path))
    assert again.waiting() == {7: 3}
    again.add(7, "default", rows(1))
    assert [len(hint.rows) for hint in again.read(7)] == [3, 1]


def test_hints_are_bounded_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    hints = HintFiles(FileDisk(tmp_path), bytes_max=1000)
    hints.add(1, "default", rows(10))
    hints.add(2, "default", rows(10))
    hints.add(2, "default", rows(20))
    assert hints.waiting() == {1: 10}
    assert hints.dropped_rows == 30


@pytest.mark.parametrize(
    ("name", "count"), [(b"\xff\xfe", 1), (b"default", 20_000_000), (b"default", 0xFFFFFFFF)], ids=str
)
def test_a_record_that_says_what_it_has_not_ends_the_file(tmp_path: Path, name: bytes, count: int) -> None:
    HintFiles(FileDisk(tmp_path)).add(7, "default", rows(3))
    whole = (tmp_path / "hints" / "7").read_bytes()
    rest = name + rows(1).tobytes()
    record = struct.pack("<IIQ", len(name), count, xxhash.xxh3_64_intdigest(rest)) + rest
    (tmp_path / "hints" / "7").write_bytes(whole + record)
    hints = HintFiles(FileDisk(tmp_path))
    assert hints.waiting() == {7: 3}
    assert [len(hint.rows) for hint in hints.read(7)] == [3]


def test_hints_that_cannot_be_read_or_removed_raise_typed_errors(tmp_path: Path) -> None:
    hints = HintFiles(FileDisk(tmp_path))
    (tmp_path / "hints" / "7").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="7"):
        list(hints.read(7))
    with pytest.raises(UnavailableError, match="7"):
        hints.done(7, 0)
    with pytest.raises(UnavailableError, match="7"):
        HintFiles(FileDisk(tmp_path))
