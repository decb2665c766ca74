"""Calls that end at a bad moment: Ctrl-C, a failed system call, no memory. What was acknowledged stays."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine import filenames, recovery
from kvmeta.engine import mark as marks
from kvmeta.engine.background import Background
from kvmeta.engine.engine import Engine
from kvmeta.engine.manifest import Manifest
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.merge import Merge
from kvmeta.engine.rocks import Rocks
from kvmeta.engine.run import SegmentFiles
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.tree import Tree
from tests.crash.small import MANUAL, TINY, assert_holds, ids, locations, open_store, put
from tests.patience import HANG_S, until

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
def test_a_merge_that_ends_at_a_bad_moment_loses_nothing_acknowledged(
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


def test_a_device_that_does_not_say_whether_a_file_is_there_raises_a_typed_error(
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
def test_a_store_whose_writers_were_interrupted_opens_again_with_all_that_was_acknowledged(
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


def test_an_interrupted_publication_hides_no_older_acknowledged_entry(
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
def test_a_load_that_ends_at_its_install_is_there_whole_or_not_at_all(
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
def test_a_flush_that_ends_at_a_bad_moment_loses_nothing_acknowledged(
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


def test_a_background_thread_out_of_memory_makes_writers_fail_and_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        FailsOnce(patch, Memtable, "sorted_rows", MemoryError(), after=False)
        error = _in_a_thread(lambda: put(store, 0, 30_000))
    assert isinstance(error, kvmeta.KvmetaError), f"the writer ended with {error!r}"
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 1000)


def test_a_writer_that_waits_for_room_in_a_dataset_dropped_meanwhile_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create_dataset("short-lived")
    with store.engine.background.lock:  # no flush gets through
        thread = _Caller(lambda: put(store, 0, 40_000, dataset="short-lived"))
        until(
            lambda: len(store.engine.tree("short-lived").frozen) > TINY.frozen_memtables_max,
            "the writer never has to wait",
        )
        assert thread.thread.is_alive()
        store.drop_dataset("short-lived")
    assert isinstance(thread.error(), kvmeta.NotFoundError)
    store.close()


def test_a_load_into_a_dataset_dropped_meanwhile_is_not_acknowledged(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    target = store.create_dataset("short-lived")

    def batches() -> Any:
        yield ids(0, 1000), locations(ids(0, 1000))
        store.drop_dataset("short-lived")
        yield ids(1000, 2000), locations(ids(1000, 2000))

    with pytest.raises(kvmeta.NotFoundError):
        target.load(batches())
    store.close()
    with open_store(tmp_path) as again:
        assert again.verify().ok
        assert not any(filenames.segments(tmp_path).iterdir())


@pytest.mark.parametrize("call", [0, 1, 2], ids=["put", "add a volume", "create a dataset"])
def test_a_write_that_a_close_overtakes_is_told_that_the_store_is_closed(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    dataset = store.dataset()
    ready, checked, closed = threading.Event(), threading.Event(), threading.Event()
    real = Engine.check_writable

    def check_and_wait(engine: Engine) -> None:
        real(engine)
        if threading.current_thread() is caller.thread:
            checked.set()
            assert closed.wait(HANG_S)

    calls: list[Callable[[], Any]] = [
        lambda: dataset.put(ids(0, 5), locations(ids(0, 5))),
        lambda: store.volumes.add("/mnt/disk-1"),
        lambda: store.create_dataset("late"),
    ]
    caller = _Caller(lambda: ready.wait(HANG_S) and calls[call]())
    monkeypatch.setattr(Engine, "check_writable", check_and_wait)
    ready.set()
    assert checked.wait(HANG_S)
    store.close()
    closed.set()
    assert isinstance(caller.error(), kvmeta.KvmetaError)
    open_store(tmp_path).close()


def test_writers_do_not_wait_for_ever_for_a_merge_of_runs_found_damaged_meanwhile(tmp_path: Path) -> None:
    store = open_store(tmp_path, options=replace(TINY, fan_out=8, bottom_ratio=1, upper_runs_max=2))
    with store.engine.background.lock:  # no merge starts before the damage is found
        for n in range(3):
            some = ids(n * 1000, n * 1000 + 1000)
            store.dataset().load([(some, locations(some))])
        damaged = min(filenames.segments(tmp_path).glob("*.seg"))
        with open(damaged, "r+b") as file:
            file.seek(5000)
            file.write(b"damage")
        assert store.dataset().lookup(ids(0, 1000), on_error="mask").failed.any()
    caller = _Caller(lambda: put(store, 5000, 5010))
    assert caller.error() is None
    assert_holds(store, 5000, 5010)
    assert_holds(store, 1000, 3000)
    store.close()


@pytest.mark.parametrize("call", ["flush", "compact"])
@pytest.mark.parametrize("moment", ["freeze", "set_tree"])
def test_a_flush_or_compact_passes_over_a_dataset_dropped_meanwhile(
    tmp_path: Path, call: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, options=MANUAL)
    for name in ("a-short-lived", "b-stays", "c-short-lived"):
        store.create_dataset(name)
        put(store, 0, 1500, dataset=name)
    real, dropped = getattr(Engine, moment), threading.Event()
    drop, dropping = Engine.drop_dataset, threading.Event()

    def begin_to_drop(engine: Engine, name: str) -> None:
        dropping.set()
        drop(engine, name)

    def and_then_drop(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        result = real(engine, *args, **kwargs)
        if not dropped.is_set():
            dropped.set()
            caller = _Caller(lambda: [store.drop_dataset(f"{each}-short-lived") for each in "ac"])
            assert dropping.wait(HANG_S)
            caller.thread.join(0.3)  # it may have to wait for a lock that is held here
        return result

    monkeypatch.setattr(Engine, "drop_dataset", begin_to_drop)
    monkeypatch.setattr(Engine, moment, and_then_drop)
    getattr(store, call)()
    monkeypatch.undo()
    until(lambda: len(store.datasets()) == 2, "the drop, which may have waited for a lock, never ended")
    assert store.datasets() == ["b-stays", "default"]
    store.flush()
    assert_holds(store, 0, 1500, dataset="b-stays")
    assert store.verify().ok
    store.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 1500, dataset="b-stays")


def test_a_close_beside_background_work_still_seals_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    background = store.engine.background
    stepping, closing, changed = threading.Event(), threading.Event(), threading.Event()
    real_change, real_stop = Engine.change, Background.stop

    def change(engine: Engine, made: Any) -> None:
        if threading.current_thread() is background._thread:
            stepping.set()
            assert closing.wait(HANG_S)
        try:
            real_change(engine, made)
        finally:
            if closing.is_set():
                changed.set()

    def stop(self: Background) -> None:
        closing.set()
        if self._thread is not None and not self._stopping:
            assert changed.wait(HANG_S)  # the thread does it before it is told to stop
        real_stop(self)

    monkeypatch.setattr(Engine, "change", change)
    put(store, 0, 2500)
    assert stepping.wait(HANG_S)
    monkeypatch.setattr(Background, "stop", stop)
    store.close()
    monkeypatch.undo()
    identity = recovery.read_identity(tmp_path)
    mark, _ = marks.read(tmp_path, identity.store_id)
    assert mark.clean
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 2500)


def test_datasets_created_by_many_threads_are_all_there(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    names = [f"d{n}" for n in range(48)]

    def create(some: list[str]) -> None:
        for name in some:
            store.create_dataset(name)

    callers = [_Caller(lambda part=names[n::8]: create(part)) for n in range(8)]
    assert [caller.error() for caller in callers] == [None] * 8
    assert store.datasets() == sorted(["default", *names])
    store.close()


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
    """Put all batches from threads whose writes share one commit group; raise what whoever led it met."""
    committer = store.engine._committer
    with committer.lock:
        callers = [
            _Caller(lambda some=some, mark=mark: store.dataset().put(some, locations(some, mark)))
            for some, mark in batches
        ]
        until(lambda: len(committer._queue) == len(batches), "the writes never share a group")
        assert all(caller.thread.is_alive() for caller in callers)
    errors = [error for caller in callers if (error := caller.error()) is not None]
    # The lock decides who leads: any of them may meet the fault itself, the others are told of it.
    for error in sorted(errors, key=lambda error: isinstance(error, kvmeta.KvmetaError)):
        raise error


class _Caller:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - the test judges it
                self._error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def error(self) -> BaseException | None:
        """Return what the call raised, once it has ended."""
        self.thread.join(HANG_S)
        assert not self.thread.is_alive(), "the call never ended"
        return self._error


def _in_a_thread(call: Callable[[], Any]) -> BaseException | None:
    return _Caller(call).error()
