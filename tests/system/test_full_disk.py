"""A full disk: typed errors, reads go on, and once there is space again every acknowledged write is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from tests.crash.small import MANUAL, TINY, assert_holds, ids, locations, open_store, put
from tests.system.disks import needs, tmpfs

pytestmark = [pytest.mark.system, needs("mount", "umount")]

STEP = 1000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "disk", "6m") as path:
        yield path


def fill_up(disk: Path, leave_bytes: int) -> Path:
    """Write a file that leaves `leave_bytes` of the disk."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    size = max(0, free.f_bavail * free.f_frsize - leave_bytes)
    with suppress(OSError), open(ballast, "ab", buffering=0) as file:  # the store writes, too
        for _ in range(size // 4096):
            file.write(bytes(4096))
    return ballast


def put_until_full(store: EmbeddedStore, first: int) -> tuple[int, kvmeta.KvmetaError]:
    """Put until it fails; return up to which ID puts were acknowledged, and the error."""
    for start in range(first, first + 400_000, STEP):
        some = ids(start, start + STEP)
        try:
            store.dataset().put(some, locations(some))
        except kvmeta.KvmetaError as error:
            return start, error
    pytest.fail("the disk never filled up")


@pytest.mark.parametrize("options", [TINY, MANUAL], ids=["background", "by hand"])
@pytest.mark.parametrize("leave", [0, 40_000, 300_000])
def test_puts_on_a_full_disk_raise_storage_full_and_lose_nothing_acknowledged(
    disk: Path, options: EngineOptions, leave: int
) -> None:
    store = open_store(disk / "store", options=options)
    put(store, 0, 3000)
    ballast = fill_up(disk, leave)
    acknowledged, error = put_until_full(store, 3000)
    assert isinstance(error, kvmeta.StorageFullError), repr(error)
    assert str(disk) in str(error)
    assert error.failed is not None
    assert len(error.failed) == STEP
    assert error.failed.all()
    assert_holds(store, 0, acknowledged)  # reads go on
    assert sum(len(page.ids) for page in store.dataset().scan()) >= acknowledged
    for write in (lambda: put(store, 0, 1), store.flush, store.compact, lambda: store.create_dataset("new")):
        with pytest.raises(kvmeta.StorageFullError):
            write()
    with open_store(disk / "store", "r") as reader:
        assert_holds(reader, 0, acknowledged)
    store.close()
    for _ in range(2):  # still full: it opens, or it says why not, and neither costs anything
        try:
            with open_store(disk / "store", options=options) as store:
                assert_holds(store, 0, acknowledged)
        except kvmeta.StorageFullError:
            pass
    with open_store(disk / "store", "r") as reader:
        assert_holds(reader, 0, acknowledged)
    ballast.unlink()
    with open_store(disk / "store") as store:
        assert_holds(store, 0, acknowledged)
        put(store, 0, 100, mark=9)
        store.compact()
        assert_holds(store, 0, 100, mark=9)
        assert_holds(store, 100, acknowledged)
        assert store.verify().ok


BIG_STEPS: dict[str, Callable[[EmbeddedStore], object]] = {
    "flush": lambda store: store.flush(),
    "compact": lambda store: store.compact(),
    "load": lambda store: store.dataset().load([(ids(500_000, 530_000), locations(ids(500_000, 530_000)))]),
}


@pytest.mark.parametrize("step", BIG_STEPS)
@pytest.mark.parametrize("leave", [0, 20_000, 60_000, 130_000])
def test_a_large_step_on_a_full_disk_fails_and_keeps_existing_entries(
    disk: Path, step: str, leave: int
) -> None:
    store = open_store(disk / "store", options=MANUAL)
    put(store, 0, 8000)
    store.flush()
    put(store, 4000, 12_000, mark=1)
    store.dataset().delete(ids(0, 100))
    ballast = fill_up(disk, leave)
    with pytest.raises(kvmeta.StorageFullError, match=str(disk)):
        BIG_STEPS[step](store)

    def check(store: EmbeddedStore) -> None:
        assert not store.dataset().lookup(ids(0, 100)).found.any()
        assert_holds(store, 100, 4000)
        assert_holds(store, 4000, 12_000, mark=1)
        assert not store.dataset().lookup(ids(500_000, 530_000)).found.any()

    check(store)
    with open_store(disk / "store", "r") as reader:
        check(reader)
    store_closes(store)
    ballast.unlink()
    with open_store(disk / "store", options=MANUAL) as store:
        check(store)
        assert store.verify().ok
        named = {path.name for path in (disk / "store" / "segments").iterdir()}
        assert len(named) == store.verify().segments, "unfinished segments were left behind"
        store.compact()
        check(store)


def store_closes(store: EmbeddedStore) -> None:
    """Close a store on a full disk: it may say that the disk is full, and is closed then all the same."""
    try:
        store.close()
    except kvmeta.StorageFullError:
        store.close()


def test_closing_a_store_on_a_full_disk_loses_nothing(disk: Path) -> None:
    store = open_store(disk / "store")
    put(store, 0, 3000)
    ballast = fill_up(disk, 0)
    store_closes(store)
    with open_store(disk / "store", "r") as reader:
        assert_holds(reader, 0, 3000)
    ballast.unlink()
    with open_store(disk / "store") as store:
        assert_holds(store, 0, 3000)


@pytest.mark.parametrize("leave", [0, 8192, 20_000, 60_000, 1_000_000])
def test_a_store_can_be_created_once_a_full_disk_has_room_again(disk: Path, leave: int) -> None:
    ballast = fill_up(disk, leave)
    made = True
    try:
        with open_store(disk / "store") as store:
            put(store, 0, 10)
    except kvmeta.StorageFullError:  # any other error fails the test
        made = False
    ballast.unlink()
    with open_store(disk / "store") as store:
        put(store, 0, 10)
        assert_holds(store, 0, 10)
    assert made or leave < 1_000_000
