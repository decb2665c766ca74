"""A damaged run, from its discovery to its end: quarantined, restored, or given up."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.damage import Lost, lost
from kvmeta.engine.kernels import hashing
from kvmeta.engine.manifest import MergeRecord
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.window import within

OPTIONS = EngineOptions(
    batch_rows_max=1000,
    memtable_rows_max=1000,
    segment_bytes_max=64 << 10,
    merge_step_rows=1000,
    background=False,
)
N = 8000


def ids(n: int = N, start: int = 0) -> np.ndarray:
    return kvmeta.ids_from_ints(np.arange(start, start + n, dtype=np.uint64))


def at(n: int, offset: int) -> np.ndarray:
    loc = np.zeros(n, kvmeta.LOCATION)
    loc["offset"] = offset
    return loc


def open_(path: Path, mode: str = "a") -> EmbeddedStore:
    return EmbeddedStore(path, mode, OPTIONS)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return a store of one run."""
    path = tmp_path / "catalog"
    with open_(path) as store:
        store.dataset().put(ids(), at(N, 1))
        store.compact()
    return path


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """Return a store whose one run has a flipped bit in a row page; a copy of the file lies beside it."""
    segment = sorted((whole / "segments").iterdir())[1]
    shutil.copy(segment, tmp_path / "good.seg")
    data = bytearray(segment.read_bytes())
    data[2 * 4096 + 99] ^= 4
    segment.write_bytes(data)
    return whole


def failed_ids(store: EmbeddedStore) -> np.ndarray:
    return np.flatnonzero(store.dataset().lookup(ids(), on_error="mask").failed)


def test_lookups_scans_and_verify_report_damage_and_the_store_remembers_it(damaged: Path) -> None:
    with open_(damaged) as store:
        with pytest.raises(kvmeta.IncompleteBatchError, match="verify") as caught:
            store.dataset().lookup(ids())
        lost = np.flatnonzero(caught.value.failed)
        assert 0 < len(lost) < 400
        assert caught.value.partial.found[~caught.value.failed].all()
        with pytest.raises(kvmeta.CorruptionError) as scanned:
            list(store.dataset().scan())
        assert scanned.value.ranges
        report = store.verify()
        assert [damage.page for damage in report.damages] == [2]
    with open_(damaged) as store:
        assert store.stats().datasets[0].quarantined_runs == 1
        assert (failed_ids(store) == lost).all()


def test_a_merge_leaves_a_damaged_run_where_it_is(damaged: Path) -> None:
    with open_(damaged) as store:
        lost = failed_ids(store)
        store.dataset().put(ids(500, N), at(500, 2))
        store.compact()
        assert (failed_ids(store) == lost).all()
        assert store.dataset().lookup(ids(500, N)).found.all()


def test_entries_put_again_win_over_the_damaged_run(damaged: Path) -> None:
    with open_(damaged) as store:
        store.dataset().put(ids(), at(N, 3))
        for change in (lambda: None, store.flush, store.compact):
            change()
            assert len(failed_ids(store)) == 0
            assert (store.dataset().lookup(ids()).locations["offset"] == 3).all()


def test_restoring_a_damaged_file_from_a_copy_ends_its_quarantine(damaged: Path, tmp_path: Path) -> None:
    with open_(damaged) as store:
        store.verify()
    segment = sorted((damaged / "segments").iterdir())[1]
    shutil.copy(tmp_path / "good.seg", segment)
    with open_(damaged) as store:
        assert len(failed_ids(store)) == 0
        assert store.verify().ok
        assert store.stats().datasets[0].quarantined_runs == 0
        store.compact()
        assert sum(len(page) for page in store.dataset().scan()) == N


@pytest.mark.parametrize("lost_file", [False, True])
def test_compact_can_discard_damaged_entries(damaged: Path, lost_file: bool) -> None:
    if lost_file:
        sorted((damaged / "segments").iterdir())[1].unlink()
    with open_(damaged) as store:
        before = store.dataset().lookup(ids(), on_error="mask")
        store.dataset().put(ids(100, N), at(100, 2))
        store.compact(discard_damaged=True)
        assert store.verify().ok
        assert store.stats().datasets[0].quarantined_runs == 0
        after = store.dataset().lookup(ids())
        gone = np.flatnonzero(~after.found)
        assert len(gone) > 0
        assert before.failed[gone].all()  # nothing that could be read is lost
        assert after.found[~before.failed].all()
        assert sum(len(page) for page in store.dataset().scan()) == N - len(gone) + 100
        store.dataset().put(ids(), at(N, 3))
        store.compact()
        assert sum(len(page) for page in store.dataset().scan()) == N + 100


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Give the set of pages of every file that plain reads fail to read, as on a device with bad places."""
    pages: set[int] = set()
    read = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        first, end = at // 4096, (at + size - 1) // 4096
        failing = min((page for page in pages if first <= page <= end), default=None)
        if failing is None:
            return read(fd, size, at)
        if failing == first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, failing * 4096 - at, at)

    monkeypatch.setattr("kvmeta.engine.segment.os.pread", pread)
    return pages


def test_a_probe_finds_unreadable_pages_and_the_store_remembers_them(whole: Path, failing: set[int]) -> None:
    failing |= {2, 3}
    with EmbeddedStore(whole, "a", replace(OPTIONS, probe=True)) as store:
        hit = store.dataset().lookup(ids(), on_error="mask")
        lost = np.flatnonzero(hit.failed)
        segments = len(list((whole / "segments").iterdir()))
        assert 0 < len(lost) < 2 * 400 * segments
        assert hit.found[~hit.failed].all()
        report = store.verify()
        assert [damage.page for damage in report.damages] == [2, 3] * segments
        assert {damage.reason for damage in report.damages} == {"the device cannot read it"}
        with pytest.raises(kvmeta.CorruptionError):
            list(store.dataset().scan())
    with open_(whole) as store:  # a file that is known to be damaged is probed at every open
        assert (failed_ids(store) == lost).all()
        store.dataset().put(ids(), at(N, 2))
        assert len(failed_ids(store)) == 0
        store.compact()
        assert len(failed_ids(store)) == 0
    failing.clear()
    with open_(whole) as store:
        assert store.verify().ok
        store.compact()
        assert (store.dataset().lookup(ids()).locations["offset"] == 2).all()


def test_an_unreadable_header_or_directory_loses_the_whole_segment(whole: Path, failing: set[int]) -> None:
    last = sorted((whole / "segments").iterdir())[0].stat().st_size // 4096 - 1
    for page in (0, last - 1, last):
        failing.clear()
        failing.add(page)
        with EmbeddedStore(whole, "a", replace(OPTIONS, probe=True)) as store:
            assert len(failed_ids(store)) > 1000
            assert "cannot be read" in store.verify().damages[0].reason
        with open_(whole) as store:
            assert len(failed_ids(store)) > 1000
    failing.clear()
    with open_(whole) as store:
        assert len(failed_ids(store)) == 0


def test_compact_can_discard_unreadable_entries(whole: Path, failing: set[int]) -> None:
    failing.add(2)
    with EmbeddedStore(whole, "a", replace(OPTIONS, probe=True)) as store:
        lost = failed_ids(store)
        store.compact(discard_damaged=True)
        found = store.dataset().lookup(ids()).found
        assert set(np.flatnonzero(~found)) <= set(lost)
        assert not found.all()
        assert store.stats().datasets[0].quarantined_runs == 0


def lost_of(store: EmbeddedStore) -> list[Lost]:
    return lost(store.engine.tree("default"))


def give_up(store: EmbeddedStore, what: Lost) -> bool:
    return store.engine.background.give_up(store.engine.tree("default"), what)


def test_reported_losses_cover_every_failed_id(damaged: Path) -> None:
    with open_(damaged) as store:
        failed = failed_ids(store)
        (what,) = lost_of(store)
        assert (what.pages, what.ranges) == ((1,), 1)
        mixed = np.empty((N, 2), np.uint64)
        hashing.mix(ids().view(np.uint64).reshape(-1, 2), store.engine.keys, mixed)
        inside = within(mixed, np.array(what.stretches, np.uint64))
        assert inside[failed].all()
        assert inside.sum() < 400


@pytest.mark.parametrize("lost_file", [False, True])
def test_giving_up_damage_rewrites_only_the_damaged_segment(damaged: Path, lost_file: bool) -> None:
    if lost_file:
        sorted((damaged / "segments").iterdir())[1].unlink()
    with open_(damaged) as store:
        before = store.dataset().lookup(ids(), on_error="mask")
        (what,) = lost_of(store)
        files = {file.name for file in (damaged / "segments").iterdir()}
        store.verify()
        assert give_up(store, what)
        assert lost_of(store) == []
        assert store.verify().ok
        assert store.stats().datasets[0].quarantined_runs == 0
        now = {file.name for file in (damaged / "segments").iterdir()}
        assert len(files - now) == (0 if lost_file else 1)
        assert len(now - files) == (0 if lost_file else 1)
        after = store.dataset().lookup(ids())
        assert after.found[before.found].all()
        assert (after.versions == before.versions)[~before.failed].all()
        assert 0 < np.count_nonzero(~after.found) <= np.count_nonzero(before.failed)
        store.dataset().put(ids(), at(N, 3))
        store.compact()
        assert (store.dataset().lookup(ids()).locations["offset"] == 3).all()
    with open_(damaged) as store:
        assert sum(len(page) for page in store.dataset().scan()) == N


def test_nothing_is_given_up_if_damage_grew_after_the_report(damaged: Path) -> None:
    file = sorted((damaged / "segments").iterdir())[1]
    data = bytearray(file.read_bytes())
    data[4 * 4096 + 99] ^= 4
    file.write_bytes(data)
    with open_(damaged) as store:
        segment = store.engine.tree("default").view.segments[1]
        segment.verify(1, 1)
        (what,) = lost_of(store)
        assert not give_up(store, replace(what, pages=()))
        files = sorted((damaged / "segments").iterdir())
        assert not give_up(store, what)  # the other page is first read as the segment is written anew
        assert sorted((damaged / "segments").iterdir()) == files
        (more,) = lost_of(store)
        assert more.pages == (1, 3)
        assert give_up(store, more)
        assert lost_of(store) == []


def test_a_damaged_segment_in_a_merge_is_not_given_up_yet(damaged: Path) -> None:
    with open_(damaged) as store:
        tree = store.engine.tree("default")
        store.dataset().put(ids(100, N), at(100, 2))
        store.flush()
        failed_ids(store)
        (what,) = lost_of(store)
        inputs = tuple(run.record.number for run in tree.runs)
        merge = MergeRecord(inputs, store.engine.take_number(), bottom=True)
        store.engine.set_tree(tree, replace(tree.record, merges=(merge,)))
        assert not give_up(store, what)
        while store.engine.background.step():
            pass
        assert give_up(store, what)


def test_a_damaged_run_prevents_dropping_rows_before_anything_is_rewritten(damaged: Path) -> None:
    with open_(damaged) as store:
        store.verify()
        store.dataset().put(ids(100, N), at(100, 2))
        store.flush()
        files = sorted((damaged / "segments").iterdir())
        with pytest.raises(kvmeta.CorruptionError, match="nothing was dropped"):
            store.engine.background.drop(store.engine.tree("default"), ((0, 1 << 60),))
        assert sorted((damaged / "segments").iterdir()) == files


def test_a_rewritten_segment_leaves_out_unreadable_pages(whole: Path, failing: set[int]) -> None:
    failing.add(2)
    with EmbeddedStore(whole, "a", replace(OPTIONS, probe=True)) as store:
        before = store.dataset().lookup(ids(), on_error="mask")
        for each in lost_of(store):
            assert give_up(store, each)
        assert lost_of(store) == []
        assert store.stats().datasets[0].quarantined_runs == 0
        after = store.dataset().lookup(ids())
        assert not after.found.all()
        assert after.found[~before.failed].all()
