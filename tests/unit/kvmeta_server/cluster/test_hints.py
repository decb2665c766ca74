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


def test_hints_are_read_in_the_order_they_were_added(tmp_path: Path) -> None:
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


def test_hints_added_during_a_replay_stay(tmp_path: Path) -> None:
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


def test_hints_are_bounded_and_dropped_rows_are_counted(tmp_path: Path) -> None:
    hints = HintFiles(FileDisk(tmp_path), bytes_max=1000)
    hints.add(1, "default", rows(10))
    hints.add(2, "default", rows(10))
    hints.add(2, "default", rows(20))
    assert hints.waiting() == {1: 10}
    assert hints.dropped_rows == 30


class Told:
    """A log of which the warnings are kept."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, dict[str, object]]] = []

    def warning(self, event: str, **fields: object) -> None:
        self.warnings.append((event, fields))

    def info(self, event: str, **fields: object) -> None: ...

    def fault(self, where: str, error: BaseException) -> None: ...


def test_dropped_hints_are_logged_once_until_there_is_room_again(tmp_path: Path) -> None:
    log = Told()
    hints = HintFiles(FileDisk(tmp_path), 1000, log)
    hints.add(1, "default", rows(10))
    for _ in range(3):
        hints.add(2, "default", rows(20))
    assert hints.dropped_rows == 60
    ((event, fields),) = log.warnings
    assert event == "hints dropped"
    assert (fields["node"], fields["rows"]) == (2, 20)
    (hint,) = hints.read(1)
    assert hints.done(1, hint.end)
    hints.add(2, "default", rows(30))
    assert len(log.warnings) == 2


def damage(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_record_is_counted_and_later_records_are_read(tmp_path: Path, restarted: bool) -> None:
    hints = HintFiles(FileDisk(tmp_path))
    for count in (3, 4, 5):
        hints.add(7, "default", rows(count))
    first, second, _ = hints.read(7)
    damage(tmp_path / "hints" / "7", second.end - 1)
    if restarted:
        hints = HintFiles(FileDisk(tmp_path))
        assert hints.waiting() == {7: 8}
    for _ in range(2):
        read = list(hints.read(7))
        assert [len(hint.rows) for hint in read] == [3, 0, 5]
        assert read[0].end == first.end
    assert hints.dropped_rows == 4
    assert hints.done(7, read[-1].end)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_head_costs_the_hints_behind_it_but_no_new_ones(tmp_path: Path, restarted: bool) -> None:
    hints = HintFiles(FileDisk(tmp_path))
    for count in (3, 4, 5):
        hints.add(7, "default", rows(count))
    first, *_ = hints.read(7)
    damage(tmp_path / "hints" / "7", first.end + 3)
    if restarted:
        hints = HintFiles(FileDisk(tmp_path))
    assert [len(hint.rows) for hint in hints.read(7)] == [3]
    assert hints.dropped_rows == 9
    hints.add(7, "default", rows(2))
    *_, last = hints.read(7, first.end)
    assert len(last.rows) == 2
    assert hints.done(7, last.end)
    assert not (tmp_path / "hints" / "7").exists()


@pytest.mark.parametrize(
    ("name", "count"), [(b"\xff\xfe", 1), (b"default", 20_000_000), (b"default", 0xFFFFFFFF)], ids=str
)
def test_a_record_that_claims_missing_rows_ends_the_file(tmp_path: Path, name: bytes, count: int) -> None:
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
