"""Calls that another one overtakes: a close, a dataset dropped meanwhile, a merge under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvmeta
from kvmeta.engine import filenames, recovery
from kvmeta.engine import mark as marks
from kvmeta.engine.background import Background
from kvmeta.engine.engine import Engine
from tests.crash.callers import Caller
from tests.crash.small import MANUAL, TINY, assert_holds, ids, locations, open_store, put
from tests.patience import HANG_S, until


def test_a_writer_waiting_for_room_fails_when_its_dataset_is_dropped(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create_dataset("short-lived")
    with store.engine.background.lock:  # no flush gets through
        thread = Caller(lambda: put(store, 0, 40_000, dataset="short-lived"))
        until(
            lambda: len(store.engine.tree("short-lived").frozen) > TINY.frozen_memtables_max,
            "the writer never has to wait",
        )
        assert thread.thread.is_alive()
        store.drop_dataset("short-lived")
    assert isinstance(thread.error(), kvmeta.NotFoundError)
    store.close()


def test_a_load_fails_when_its_dataset_is_dropped_meanwhile(tmp_path: Path) -> None:
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
def test_a_write_overtaken_by_a_close_reports_a_closed_store(
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
    caller = Caller(lambda: ready.wait(HANG_S) and calls[call]())
    monkeypatch.setattr(Engine, "check_writable", check_and_wait)
    ready.set()
    assert checked.wait(HANG_S)
    store.close()
    closed.set()
    assert isinstance(caller.error(), kvmeta.KvmetaError)
    open_store(tmp_path).close()


def test_writers_do_not_wait_for_a_merge_of_damaged_runs(tmp_path: Path) -> None:
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
    caller = Caller(lambda: put(store, 5000, 5010))
    assert caller.error() is None
    assert_holds(store, 5000, 5010)
    assert_holds(store, 1000, 3000)
    store.close()


@pytest.mark.parametrize("call", ["flush", "compact"])
@pytest.mark.parametrize("moment", ["freeze", "set_tree"])
def test_a_flush_or_compact_skips_a_dataset_dropped_meanwhile(
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
            caller = Caller(lambda: [store.drop_dataset(f"{each}-short-lived") for each in "ac"])
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


def test_a_close_during_background_work_still_seals_the_store(
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

    callers = [Caller(lambda part=names[n::8]: create(part)) for n in range(8)]
    assert [caller.error() for caller in callers] == [None] * 8
    assert store.datasets() == sorted(["default", *names])
    store.close()
