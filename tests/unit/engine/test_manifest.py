from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvmeta.engine.manifest import (
    Change,
    DatasetRecord,
    Manifest,
    MergeRecord,
    RunRecord,
    TreeRecord,
)
from kvmeta.engine.segment_header import SegmentRecord
from kvmeta.engine.wal import Position
from kvmeta.errors import CorruptionError

LOG = Path("log")
SEGMENT = SegmentRecord(9, 100, 3, 8192, 1 << 100, 2 << 100, 1 << 23, 2**64 - 1)
TREE = TreeRecord(
    5, (RunRecord(4, True, 2**64 - 1, (SEGMENT,), {9: (0, 3)}),), (MergeRecord((4,), 8, False, 77),)
)


def apply(manifest: Manifest, rows: dict[bytes, bytes], change: Change) -> None:
    prepared = manifest.prepare(change)
    manifest.accept(prepared)
    for key, value in prepared.batch.manifest.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value


def filled() -> tuple[Manifest, dict[bytes, bytes]]:
    manifest, rows = Manifest(), {}
    apply(manifest, rows, Change())
    apply(manifest, rows, Change(datasets={1: DatasetRecord(1, "default")}, trees={1: TreeRecord()}))
    apply(manifest, rows, Change(volume_pages={0: b"a page", 1: b"another"}, next_volume=300))
    apply(
        manifest,
        rows,
        Change(trees={1: TREE}, volume_pages={1: b"a newer one"}, anchor=Position(5, 9)),
    )
    return manifest, rows


def test_a_manifest_reads_back_unchanged() -> None:
    manifest, rows = filled()
    back = Manifest.read(rows, LOG)
    assert back.datasets == manifest.datasets
    assert back.trees == {1: TREE}
    assert back.volume_pages == manifest.volume_pages == {0: b"a page", 1: b"a newer one"}
    assert back.head == manifest.head
    assert back.head.generation == 4
    assert back.head.anchor == Position(5, 9)
    assert back.rows == rows


def test_numbers_are_never_given_twice() -> None:
    manifest, rows = filled()
    numbers = [manifest.take_file_number() for _ in range(3)]
    apply(manifest, rows, Change())
    back = Manifest.read(rows, LOG)
    assert back.take_file_number() > max(numbers)
    assert back.head.next_volume == 300


def test_a_lost_or_changed_row_is_noticed() -> None:
    _, rows = filled()
    for key in rows:
        with pytest.raises(CorruptionError):
            Manifest.read({k: v for k, v in rows.items() if k != key}, LOG)
        if key != b"head":
            with pytest.raises(CorruptionError):
                Manifest.read({**rows, key: rows[key][:-1] + bytes([rows[key][-1] ^ 1])}, LOG)
    with pytest.raises(CorruptionError):
        Manifest.read({**rows, b"volumes/00000009": rows[b"volumes/00000000"]}, LOG)


def test_the_wal_is_trimmed_only_forward() -> None:
    manifest, _ = filled()
    assert manifest.prepare(Change(anchor=Position(5, 9))).batch.wal_trim is None
    assert manifest.prepare(Change(anchor=Position(6, 9))).batch.wal_trim == (
        bytes(8),
        (7).to_bytes(8, "big"),
    )


def test_an_unaccepted_change_leaves_the_manifest_unchanged() -> None:
    manifest, rows = filled()
    before = (manifest.head, dict(manifest.trees))
    manifest.prepare(Change(trees={1: replace(TREE, flushed=99)}))
    assert (manifest.head, dict(manifest.trees)) == before
    assert manifest.rows == rows


@pytest.mark.parametrize("head", [b"5", b"[" * 100_000, b"{}", b'{"anchor": 1e999}', b"\xff"], ids=repr)
def test_a_head_of_the_wrong_shape_is_damage(head: bytes) -> None:
    with pytest.raises(CorruptionError, match="damaged"):
        Manifest.read({b"head": head}, LOG)
