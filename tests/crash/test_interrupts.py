"""Calls that end at a bad moment: Ctrl-C, a failed system call, no memory. What was acknowledged stays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine import filenames
from kvmeta.engine import mark as marks
from kvmeta.engine.manifest import Manifest
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.merge import Merge
from kvmeta.engine.rocks import Rocks
from kvmeta.engine.run import SegmentFiles
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.tree import Tree
from tests.crash.callers import Caller, in_a_thread
from tests.crash.small import MANUAL, assert_holds, ids, locations, open_store, put
from tests.patience import until

N = 12_000
EIO = kvmeta.UnavailableError("planted EIO")
EMFILE = kvmeta.UnavailableError("planted EMFILE")
ENOSPC = kvmeta.StorageFullError("planted ENOSPC")


class FailsOnce:
    """A stand-in for `owner.name` that fails once, at its `at`-th call, before or after doing its work."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        error: BaseException,
        *,
        at: int = 1,
        after: bool = True,
    ) -> None:
        self.fired = False
        real: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            fires = calls == at
            result = real(*args, **kwargs) if after or not fires else None
            if fires:
                self.fired = True
                raise type(error)(*error.args)
            return result

        patch.setattr(owner, name, stand_in)


MERGE_POINTS = {
    "the merge's directory sync fails": (filenames, "sync_directory", EIO, False),
    "Ctrl-C after a window was appended": (SegmentWriter, "append", KeyboardInterrupt(), True),
    "Ctrl-C after a segment was sealed": (SegmentWriter, "seal", KeyboardInterrupt(), True),
    "Ctrl-C after a segment was finished": (SegmentWriter, "finish", KeyboardInterrupt(), True),
    "Ctrl-C after a step": (Merge, "step", KeyboardInterrupt(), True),
    "Ctrl-C after the write of the manifest": (Rocks, "write", KeyboardInterrupt(), True),
    "Ctrl-C after the sync of the manifest": (Rocks, "sync", KeyboardInterrupt(), True),
    "Ctrl-C before the change is taken over": (Manifest, "accept", KeyboardInterrupt(), False),
    "Ctrl-C before the mark is written": (marks.MarkFile, "write", KeyboardInterrupt(), False),
    "no file descriptor to open the new segment": (SegmentFiles, "open", EMFILE, False),
    "Ctrl-C before the new view": (Tree, "replace_runs", KeyboardInterrupt(), False),
    "Ctrl-C after the new view": (Tree, "replace_runs", KeyboardInterrupt(), True),
}  # fmt: skip


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("point", MERGE_POINTS)
def test_an_interrupted_merge_loses_no_acknowledged_entry(
    tmp_path: Path, point: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, error, after = MERGE_POINTS[point]
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, N)
    store.flush()
    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, owner, name, error, at=at, after=after)
        with pytest.raises(type(error)):
            store.compact()
        assert fault.fired
    assert_holds(store, 0, N)
    try:  # a store that stopped says so; one that goes on must go on from what it has
        store.compact()
        put(store, N, N + 100)
        assert_holds(store, N, N + 100)
    except kvmeta.KvmetaError:
        pass
    assert_holds(store, 0, N)
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, N)
        assert again.verify().ok
        again.compact()
        assert_holds(again, 0, N)


def test_a_device_that_cannot_check_for_a_file_raises_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", _no_answer)
        with pytest.raises(kvmeta.UnavailableError, match="looking for"):
            store.flush()
    assert_holds(store, 0, 1000)
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 1000)


def _no_answer(_: Path) -> bool:
    raise OSError(errno.EIO, "planted EIO")


WRITE_POINTS = {
    "after the write of the log": (Rocks, "write", True),
    "after the sync of the log": (Rocks, "sync", True),
    "before the mark is written": (marks.MarkFile, "write", False),
    "while rows are published": (Memtable, "insert", False),
    "after rows were published": (Memtable, "insert", True),
}


@pytest.mark.parametrize("point", WRITE_POINTS)
def test_a_store_with_interrupted_writers_reopens_with_every_acknowledged_entry(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, after = WRITE_POINTS[point]
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 300)
    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, owner, name, KeyboardInterrupt(), after=after)
        with pytest.raises(KeyboardInterrupt):
            _put_in_one_group(store, [(ids(n, n + 10), 7) for n in (0, 1000, 2000)])
        assert fault.fired
    acknowledged = _puts_if_it_still_takes_writes(store, 5000, 5010)
    assert_holds_either(store, ids(0, 10), marks_=(0, 7))
    assert_holds(store, 10, 300)
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 10, 300)
        assert_holds_either(again, ids(0, 10), marks_=(0, 7))
        if acknowledged:
            assert_holds(again, 5000, 5010)


def test_an_interrupted_put_hides_no_older_acknowledged_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 10)
    from kvmeta.engine.kernels import memtable as kernels

    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, kernels, "insert", KeyboardInterrupt())  # rows are in, the count is not
        with pytest.raises(KeyboardInterrupt):
            put(store, 0, 10, mark=7)
        assert fault.fired
    _puts_if_it_still_takes_writes(store, 5000, 5010)
    assert_holds_either(store, ids(0, 10), marks_=(0, 7))
    store.close()


CHANGE_POINTS = {
    "after the write of the manifest": (Rocks, "write", True),
    "after the sync of the manifest": (Rocks, "sync", True),
    "before the change is taken over": (Manifest, "accept", False),
    "before the mark is written": (marks.MarkFile, "write", False),
}


@pytest.mark.parametrize("point", CHANGE_POINTS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_store_whose_manifest_change_was_interrupted_opens_again(
    tmp_path: Path, point: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, after = CHANGE_POINTS[point]
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 3000)
    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, owner, name, error(), after=after)
        with pytest.raises((error, kvmeta.KvmetaError)):
            store.create_dataset("made-in-a-hurry")
        assert fault.fired
    try:
        store.volumes.add("/mnt/disk-1")
        store.flush()
    except kvmeta.KvmetaError:
        pass
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 3000)
        assert again.verify().ok


LOAD_POINTS = {
    "Ctrl-C after a segment was sealed": (SegmentWriter, "seal", KeyboardInterrupt(), True),
    "Ctrl-C after the write of the manifest": (Rocks, "write", KeyboardInterrupt(), True),
    "Ctrl-C after the sync of the manifest": (Rocks, "sync", KeyboardInterrupt(), True),
    "Ctrl-C before the change is taken over": (Manifest, "accept", KeyboardInterrupt(), False),
    "the mark cannot be written": (marks.MarkFile, "write", ENOSPC, False),
    "no file descriptor to open the new segment": (SegmentFiles, "open", EMFILE, False),
    "Ctrl-C before the new view": (Tree, "replace_runs", KeyboardInterrupt(), False),
    "Ctrl-C after the new view": (Tree, "replace_runs", KeyboardInterrupt(), True),
}  # fmt: skip


@pytest.mark.parametrize("point", LOAD_POINTS)
def test_a_load_interrupted_at_its_install_is_whole_or_absent(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, error, after = LOAD_POINTS[point]
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 3000)
    store.flush()
    loaded = ids(1_000_000, 1_006_000)
    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, owner, name, error, after=after)
        with pytest.raises(type(error)):
            store.dataset().load([(loaded, locations(loaded))])
        assert fault.fired
    for _ in range(2):
        assert_holds(store, 0, 3000)
        hit = store.dataset().lookup(loaded, on_error="mask")
        assert not hit.failed.any(), "the load's files are gone though the manifest names them"
        assert hit.found.all() or not hit.found.any()
        store.close()
        store = open_store(tmp_path)
    assert store.verify().ok
    store.close()


FLUSH_POINTS = {key: value for key, value in LOAD_POINTS.items() if "segment was sealed" not in key}


@pytest.mark.parametrize("point", FLUSH_POINTS)
def test_an_interrupted_flush_loses_no_acknowledged_entry(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, error, after = FLUSH_POINTS[point]
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 1500)
    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, owner, name, error, after=after)
        with pytest.raises(type(error)):
            store.flush()
        assert fault.fired
    assert_holds(store, 0, 1500)
    try:
        put(store, 0, 1000, mark=5)
        mark = 5
        store.flush()
    except kvmeta.KvmetaError:
        mark = 0 if store.dataset().lookup(ids(0, 1)).locations["tag"][0] == 0 else 5
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 1000, mark=mark)
        assert_holds(again, 1000, 1500)
        assert again.verify().ok


def test_a_close_that_fails_releases_the_lock_and_the_store_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    put(store, 0, 500)
    with monkeypatch.context() as patch:
        fault = FailsOnce(patch, marks, "seal", kvmeta.StorageFullError("planted ENOSPC"), after=False)
        with pytest.raises(kvmeta.StorageFullError):
            store.close()
        assert fault.fired
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 500)


def test_writers_fail_when_a_background_thread_runs_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        FailsOnce(patch, Memtable, "sorted_rows", MemoryError(), after=False)
        error = in_a_thread(lambda: put(store, 0, 30_000))
    assert isinstance(error, kvmeta.KvmetaError), f"the writer ended with {error!r}"
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 1000)


def assert_holds_either(store: EmbeddedStore, wanted: Any, marks_: tuple[int, ...]) -> None:
    """Assert that the IDs are held, all with one of the marks."""
    hit = store.dataset().lookup(wanted)
    assert hit.found.all(), "an acknowledged entry is absent"
    tags = set(hit.locations["tag"].tolist())
    assert len(tags) == 1
    assert tags <= set(marks_)


def _puts_if_it_still_takes_writes(store: EmbeddedStore, first: int, end: int) -> bool:
    try:
        put(store, first, end)
    except kvmeta.KvmetaError:
        return False
    return True


def _put_in_one_group(store: EmbeddedStore, batches: list[tuple[Any, int]]) -> None:
    """Put all batches from threads whose writes share one commit group; raise what its leader met."""
    committer = store.engine._committer
    with committer.lock:
        callers = [
            Caller(lambda some=some, mark=mark: store.dataset().put(some, locations(some, mark)))
            for some, mark in batches
        ]
        until(lambda: len(committer._queue) == len(batches), "the writes never share a group")
        assert all(caller.thread.is_alive() for caller in callers)
    errors = [error for caller in callers if (error := caller.error()) is not None]
    # The lock decides who leads: any of them may meet the fault itself, the others are told of it.
    for error in sorted(errors, key=lambda error: isinstance(error, kvmeta.KvmetaError)):
        raise error
