"""What is no whole store is refused with a reason, and left as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import xxhash

import kvmeta
from tests.crash.damage import (
    Fixtures,
    judge,
    no_second_look,
    segments,
    stores,
)
from tests.crash.small import MANUAL, assert_holds, open_store, put

__all__ = ["no_second_look", "stores"]  # fixtures


def test_foreign_files_in_a_store_are_left_alone_and_change_nothing(stores: Fixtures, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(stores.closed, store)
    next_number = max(int(path.stem) for path in segments(store)) + 1
    taken = [store / "segments" / f"{next_number + i:08d}.seg" for i in range(3)]
    for i, path in enumerate(taken):
        shutil.copy(segments(stores.foreign)[i], path)
    others = [store / "notes.txt", store / "segments" / "notes.txt", store / "segments" / "x.seg"]
    for path in others:
        path.write_text("not kvmeta's")
    assert not judge(store, stores.marks, "foreign files")
    with open_store(store, options=MANUAL) as opened:
        put(opened, 10_500, 12_000, mark=60)
        opened.flush()
        assert_holds(opened, 10_500, 12_000, mark=60)
    for i, path in enumerate(taken):
        assert path.read_bytes() == segments(stores.foreign)[i].read_bytes(), (
            "another store's segment was overwritten"
        )
    assert all(path.read_text() == "not kvmeta's" for path in others)


def test_a_directory_that_is_not_a_store_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for mode in ("a", "x", "r"):
        with pytest.raises(kvmeta.FormatError, match=str(tmp_path)):
            open_store(tmp_path, mode)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    with pytest.raises(kvmeta.FormatError):
        open_store(tmp_path / "photo.jpg", "r")
    with pytest.raises(kvmeta.FormatError):
        open_store(tmp_path / "photo.jpg", "a")


def test_a_store_of_a_newer_format_is_refused_with_both_numbers(stores: Fixtures, tmp_path: Path) -> None:
    shutil.copytree(stores.closed, tmp_path / "store")
    path = tmp_path / "store" / "KVMETA"
    fields = json.loads(path.read_text().split("\n")[0])
    fields["format"] += 1
    text = json.dumps(fields)
    path.write_text(f"{text}\n{xxhash.xxh3_64_hexdigest(text.encode())}\n")
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.FormatError, match=r"format 2.*up to 1.*upgrade"):
            open_store(tmp_path / "store", mode)


def test_opening_a_missing_store_to_read_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(kvmeta.NotFoundError, match="nowhere"):
        open_store(tmp_path / "nowhere", "r")
    (tmp_path / "empty").mkdir()
    with pytest.raises(kvmeta.FormatError, match="KVMETA"):
        open_store(tmp_path / "empty", "r")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("mode", ["a", "x", "r"])
@pytest.mark.parametrize(
    "name", ["n" * 300, "n/" * 3000 + "n", "a\0b"], ids=["long name", "long path", "NUL"]
)
def test_a_path_the_system_refuses_raises_a_typed_error(tmp_path: Path, mode: str, name: str) -> None:
    with pytest.raises(kvmeta.KvmetaError):
        open_store(tmp_path / name, mode)


def test_a_store_opens_again_once_its_lost_identity_file_is_restored(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        put(store, 0, 100)
    identity = (tmp_path / "store" / "KVMETA").read_bytes()
    (tmp_path / "store" / "KVMETA").unlink()
    for mode in ("a", "x", "r"):
        with pytest.raises(kvmeta.FormatError, match="KVMETA"):
            open_store(tmp_path / "store", mode)
    (tmp_path / "store" / "KVMETA").write_bytes(identity)
    with open_store(tmp_path / "store") as store:
        assert_holds(store, 0, 100)


def test_a_damaged_log_is_refused_without_being_changed(stores: Fixtures, tmp_path: Path) -> None:
    """So that a copy of the damaged file, restored, makes the store whole again."""
    for source in (stores.closed, stores.killed):
        store = tmp_path / source.name
        shutil.copytree(source, store)
        log = max((store / "log").glob("0*"), key=lambda path: path.stat().st_size)
        whole = log.read_bytes()
        log.write_bytes(whole[: len(whole) // 2])
        for mode in ("a", "r", "a"):
            with pytest.raises(kvmeta.CorruptionError):
                open_store(store, mode, options=MANUAL)
        log.write_bytes(whole)
        assert not judge(store, stores.marks, source.name)
