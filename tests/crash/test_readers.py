"""Processes side by side: readers beside a live writer, a second writer, forks of both."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.compiler_lock import global_compiler_lock

import kvmeta
from kvmeta.embedded import EmbeddedStore
from tests.crash.processes import ends_well, fork_ends_well, fresh, in_a_fork
from tests.crash.small import MANUAL, TINY, assert_holds, ids, locations, open_store, put
from tests.patience import HANG_S

KEYS = 2000  # the writer puts them over and over, each time with the next mark
ROUNDS = 12


def keep_writing(path: Path, acknowledged: Connection, stop: Event) -> None:
    """Rewrite KEYS IDs with ever higher marks, and rows that come and go; tell each acknowledged mark."""
    store = open_store(path)
    mark, passing = 0, ids(KEYS, 2 * KEYS)
    while not stop.is_set():
        mark += 1
        put(store, 0, KEYS, mark)
        if mark % 5 == 0:
            store.dataset().delete(passing)
        elif mark % 5 == 2:
            store.dataset().load([(passing, locations(passing))])
        elif mark % 7 == 3:
            store.compact()
        acknowledged.send(mark)
    store.close()
    acknowledged.close()


class LiveWriter:
    """A process that runs `keep_writing`."""

    def __init__(self, path: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        self._marks, into = context.Pipe(duplex=False)
        self._stop = context.Event()
        self._process = fresh(keep_writing, path, into, self._stop)
        into.close()

    def acknowledged(self) -> int:
        """Return the mark acknowledged last; wait for the next one if that is known already."""
        assert self._marks.poll(HANG_S), "the writer hangs"
        while True:
            mark: int = self._marks.recv()
            if not self._marks.poll():
                return mark

    def end(self) -> None:
        """Let the writer close its store and end."""
        self._stop.set()
        try:
            while self._marks.poll(HANG_S):
                self._marks.recv()
        except EOFError:
            pass
        ends_well(self._process)


@pytest.fixture
def live_writer(tmp_path: Path) -> Iterator[LiveWriter]:
    writer = LiveWriter(tmp_path)
    writer.acknowledged()
    yield writer
    writer.end()
    with open_store(tmp_path) as store:
        assert store.verify().ok


def marks_of(store: kvmeta.Store) -> tuple[int, int]:
    """Return the lowest and the highest mark of the rewritten IDs; all must be found."""
    hit = store.dataset().lookup(ids(0, KEYS))
    assert hit.found.all(), f"{int((~hit.found).sum())} IDs put over and over are absent"
    return int(hit.locations["tag"].min()), int(hit.locations["tag"].max())


def test_a_refreshed_reader_sees_every_earlier_acknowledged_write(
    tmp_path: Path, live_writer: LiveWriter
) -> None:
    reader = open_store(tmp_path, "r")
    for _ in range(ROUNDS):
        before = live_writer.acknowledged()
        reader.refresh()
        low, high = marks_of(reader)
        assert low >= before, f"mark {before} was acknowledged before the refresh, which shows {low}"
        assert high <= low + 1  # the writing of one mark may be under way
        assert marks_of(reader) == (low, high)  # while files go under it
        found = np.concatenate([page.ids for page in reader.dataset().scan(page_rows=700)])
        assert len(np.unique(found)) == len(found)
        assert set(kvmeta.as_ids(ids(0, KEYS)).tolist()) <= set(found.tolist())
    reader.close()


def test_opening_to_read_beside_a_live_writer_never_fails(tmp_path: Path, live_writer: LiveWriter) -> None:
    for _ in range(ROUNDS):
        before = live_writer.acknowledged()
        with open_store(tmp_path, "r") as reader:
            assert marks_of(reader)[0] >= before


def test_forks_of_a_reader_refresh_beside_a_live_writer(tmp_path: Path, live_writer: LiveWriter) -> None:
    reader = open_store(tmp_path, "r")
    low, high = marks_of(reader)

    def child() -> None:
        assert marks_of(reader) == (low, high)
        for _ in range(4):
            reader.refresh()
            now = marks_of(reader)
            assert now[0] >= low
        with open_store(tmp_path, "r") as another:
            assert marks_of(another)[0] >= now[0]
        with pytest.raises(kvmeta.ReadOnlyError):
            put(reader, 0, 10)
        reader.close()

    for pid in [in_a_fork(child) for _ in range(3)]:
        fork_ends_well(pid)
    assert marks_of(reader) == (low, high)
    reader.refresh()
    reader.close()


def test_a_reader_keeps_its_view_while_the_writer_removes_its_segments(tmp_path: Path) -> None:
    writer = open_store(tmp_path, options=MANUAL)
    put(writer, 0, 8000)
    writer.flush()
    reader = open_store(tmp_path, "r")
    named = {segment.path for tree in reader.engine.trees.values() for segment in tree.view.segments}
    put(writer, 0, 8000, mark=1)
    writer.compact()
    assert not any(path.exists() for path in named)
    assert_holds(reader, 0, 8000, mark=0)
    assert reader.verify().ok
    reader.refresh()
    assert_holds(reader, 0, 8000, mark=1)
    writer.close()
    reader.refresh()
    assert_holds(reader, 0, 8000, mark=1)
    reader.close()


def test_a_reader_sees_what_an_unflushed_log_holds(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    put(writer, 0, 500)
    with open_store(tmp_path, "r") as reader:
        assert_holds(reader, 0, 500)
        writer.dataset().delete(ids(0, 100))
        writer.create_dataset("later")
        put(writer, 0, 50, dataset="later")
        assert_holds(reader, 0, 500)
        with pytest.raises(kvmeta.NotFoundError):
            reader.dataset("later")
        reader.refresh()
        assert not reader.dataset().lookup(ids(0, 100)).found.any()
        assert_holds(reader, 100, 500)
        assert_holds(reader, 0, 50, dataset="later")
    writer.close()


def test_reading_a_store_changes_none_of_its_files(tmp_path: Path) -> None:
    """Whoever reads may do so beside a writer that is just sealing its log, or without the right to write."""
    with open_store(tmp_path) as writer:
        put(writer, 0, 3000)

    def files() -> dict[str, tuple[int, bytes]]:
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = files()
    with open_store(tmp_path, "r") as reader:
        assert_holds(reader, 0, 3000)
        reader.refresh()
        assert reader.verify().ok
    assert files() == before


def test_readers_can_open_a_store_while_its_writer_closes_and_reopens(tmp_path: Path) -> None:
    with open_store(tmp_path, options=MANUAL) as writer:
        put(writer, 0, 1000)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                with open_store(tmp_path, "r", options=MANUAL) as reader:
                    assert_holds(reader, 0, 1000)
            except BaseException as error:  # noqa: BLE001 - the test judges it
                wrong.append(repr(error))
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(25):
            with open_store(tmp_path, options=MANUAL) as writer:
                put(writer, 1000 + round_, 1001 + round_)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_every_write_through_a_reader_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as writer:
        put(writer, 0, 10)
    with open_store(tmp_path, "r") as reader:
        for call in writes(reader):
            with pytest.raises(kvmeta.ReadOnlyError):
                call()
        assert_holds(reader, 0, 10)


def writes(store: EmbeddedStore) -> list[Callable[[], object]]:
    """Return one call of each kind that changes the store."""
    dataset, some = store.dataset(), ids(0, 10)
    return [
        lambda: dataset.put(some, locations(some)),
        lambda: dataset.insert(some, locations(some)),
        lambda: dataset.delete(some),
        lambda: dataset.relocate(some, locations(some), np.zeros(10, np.uint64)),
        lambda: dataset.load([(some, locations(some))]),
        lambda: store.create_dataset("new"),
        lambda: store.drop_dataset("new"),
        lambda: store.volumes.add("/mnt/new"),
        lambda: store.flush(),
        lambda: store.compact(),
    ]


def test_a_second_writer_is_locked_out_in_this_process_and_in_another(tmp_path: Path) -> None:
    with open_store(tmp_path) as writer:
        put(writer, 0, 10)
        with pytest.raises(kvmeta.StoreLockedError, match=str(tmp_path)):
            open_store(tmp_path)
        attempt = f"try: kvmeta.open({str(tmp_path)!r})\nexcept kvmeta.StoreLockedError: print('locked')"
        code = f"import kvmeta\n{attempt}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True
        )
        assert done.stdout == "locked\n"
        put(writer, 10, 20)
    with open_store(tmp_path) as writer:
        assert_holds(writer, 0, 20)


def test_a_fork_of_a_writer_may_only_read_and_leaves_its_parent_unharmed(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    put(writer, 0, 3000)

    def child() -> None:
        assert_holds(writer, 0, 3000)
        for call in writes(writer):
            with pytest.raises(kvmeta.ReadOnlyError):
                call()
        with pytest.raises((kvmeta.StoreLockedError, kvmeta.ReadOnlyError)):
            open_store(tmp_path)
        with open_store(tmp_path, "r") as reader:
            assert_holds(reader, 0, 3000)
        writer.close()

    fork_ends_well(in_a_fork(child))
    put(writer, 3000, 6000)
    assert_holds(writer, 0, 6000)
    with pytest.raises(kvmeta.StoreLockedError):  # the child's close released nothing
        open_store(tmp_path)
    writer.compact()
    writer.close()
    with open_store(tmp_path) as again:
        assert_holds(again, 0, 6000)
        assert again.verify().ok


def test_a_fork_that_exits_normally_does_not_harm_its_parent(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from tests.crash.small import *
writer = open_store(Path({str(tmp_path)!r}))
put(writer, 0, 3000)
pid = os.fork()
if pid == 0:
    sys.exit(0)  # the interpreter is torn down, and every object with it
_, status = os.waitpid(pid, 0)
assert status == 0, status
put(writer, 3000, 6000)
writer.compact()
assert_holds(writer, 0, 6000)
writer.close()
with open_store(Path({str(tmp_path)!r})) as again:
    assert_holds(again, 0, 6000)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, timeout=HANG_S, check=True)


def test_a_writer_closes_and_opens_again_while_its_forks_live_on(tmp_path: Path) -> None:
    writer = open_store(tmp_path)
    put(writer, 0, 100)
    out, into = os.pipe()
    pid = in_a_fork(lambda: os.close(into) or (os.read(out, 1) and None))  # type: ignore[func-returns-value]
    writer.close()
    try:
        with open_store(tmp_path) as again:
            assert_holds(again, 0, 100)
    finally:
        os.close(into)
        os.close(out)
        fork_ends_well(pid)


def test_a_fork_may_not_open_a_writer_if_its_parent_had_one(
    tmp_path: Path,
) -> None:
    open_store(tmp_path / "one").close()

    def child() -> None:
        with pytest.raises(kvmeta.ReadOnlyError, match="fork"):
            open_store(tmp_path / "two")

    fork_ends_well(in_a_fork(child))
    open_store(tmp_path / "two").close()


def test_a_fork_made_while_a_kernel_is_loaded_can_use_kernels(tmp_path: Path) -> None:
    loading, loaded, forking = threading.Event(), threading.Event(), threading.Event()

    def load_a_kernel() -> None:
        with global_compiler_lock:
            loading.set()
            assert forking.wait(HANG_S)
            time.sleep(0.3)  # the fork begins meanwhile, and has to wait
        loaded.set()

    thread = threading.Thread(target=load_a_kernel)
    thread.start()
    assert loading.wait(HANG_S)
    forking.set()
    fork_ends_well(in_a_fork(lambda: numba.njit(lambda x: x + 1)(1)))
    thread.join()
    assert loaded.is_set()


def test_a_fork_made_during_a_background_step_can_read_and_verify(tmp_path: Path) -> None:
    writer = open_store(tmp_path, options=MANUAL)
    put(writer, 0, 3000)
    writer.flush()
    held, done = threading.Event(), threading.Event()

    def step() -> None:
        with writer.engine.background.lock, writer.engine._committer.lock:
            held.set()
            done.wait(HANG_S)

    thread = threading.Thread(target=step)
    thread.start()
    assert held.wait(HANG_S)

    def child() -> None:
        assert_holds(writer, 0, 3000)
        assert writer.verify().ok
        assert sum(len(page.ids) for page in writer.dataset().scan()) == 3000
        assert writer.stats().rows >= 3000
        for call in writes(writer):
            with pytest.raises(kvmeta.ReadOnlyError):
                call()
        writer.close()

    try:
        fork_ends_well(in_a_fork(child))
    finally:
        done.set()
        thread.join()
    writer.close()


def test_reader_threads_see_every_acknowledged_write_during_flushes_and_merges(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    put(store, 0, KEYS, 1)
    acknowledged, stop = [1], threading.Event()
    wrong: list[str] = []

    def read() -> None:
        dataset = store.dataset()
        while not stop.is_set():
            before = acknowledged[0]
            hit = dataset.lookup(ids(0, KEYS))
            if not hit.found.all():
                wrong.append("an acknowledged entry is absent")
            elif hit.locations["tag"].min() < before:
                wrong.append("an older entry than the acknowledged one")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for mark in range(2, 40):
        put(store, 0, KEYS, mark)
        acknowledged[0] = mark
    store.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert TINY.fan_out == 3
    store.close()


def test_readers_and_datasets_can_be_pickled_but_writers_explain_why_not(tmp_path: Path) -> None:
    with open_store(tmp_path) as writer:
        put(writer, 0, 100)
        with pytest.raises(kvmeta.UnsupportedError, match="one writer"):
            pickle.dumps(writer)
    with open_store(tmp_path, "r") as reader:
        copy = pickle.loads(pickle.dumps(reader.dataset()))
    assert copy.lookup(ids(0, 100)).found.all()
