"""kill -9 anywhere: a writer with many threads is killed over and over; what it acknowledged must be there.

Each thread of the writer has its own IDs and a stream of operations that follows from a seed. It tells the
number of an operation only after it returned. So the test knows, for each thread, a state that was
acknowledged and the one operation that may have been under way, which may have taken effect, chunk after
chunk, or not.

When a writer is killed is counted in its operations: a slow machine does as many as a fast one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rocksdict import Options, Rdict

import kvmeta
from kvmeta.engine import filenames
from kvmeta.engine.mark import MarkFile
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.rocks import Rocks
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.tree import Tree
from tests.crash.operations import SEED, SPACE, State, observed, operation, outcomes, perform, same
from tests.crash.processes import fresh
from tests.crash.small import TINY, assert_holds, open_store, put
from tests.patience import HANG_S

THREADS = 3
ENOUGH = 200
"""So many operations are far more than a point takes. A writer still gets UNLIMITED where it must come to it:
flushes and merges are done beside the operations, how far behind is the machine's matter."""
UNLIMITED = 10_000
POINTS: list[tuple[Any, str]] = [
    (Rocks, "write"),
    (Rocks, "sync"),
    (MarkFile, "write"),
    (MarkFile, "write_durably"),
    (SegmentWriter, "finish"),
    (SegmentWriter, "seal"),
    (Tree, "replace_runs"),
    (filenames, "sync_directory"),
    (Path, "unlink"),
]


def die_at(owner: Any, name: str, count: int, *, after: bool) -> None:
    """Kill this process at the `count`-th call of `owner.name`, before or after it does its work."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        dies = calls == count
        if dies and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, stand_in)


def write_until_killed(
    path: Path,
    round_: int,
    states: list[State],
    tell: Connection,
    point: tuple[int, int, bool] | None = None,
    options: EngineOptions = TINY,
) -> None:
    """Open the store and let each thread perform its operations; tell (thread, k) of each that returned."""
    if point is not None:
        owner, name = POINTS[point[0]]
        die_at(owner, name, point[1], after=point[2])
    store = open_store(path, options=options)
    lock = threading.Lock()

    def perform_all(thread: int) -> None:
        state, k = states[thread], 0
        while True:
            op = operation(thread, round_, k)
            try:
                perform(store, op, state)
                state = outcomes(state, op)[-1]
                if k % 5 == 0:
                    assert same(observed(store, thread), state), f"wrong answer after {op.kind}"
            except BaseException as error:  # noqa: BLE001 - the test must hear of it
                with lock:
                    kind = "failed, typed" if isinstance(error, kvmeta.KvmetaError) else "failed"
                    tell.send((kind, thread, k, repr(error)))
                return
            with lock:
                tell.send(("done", thread, k, ""))
            k += 1

    with lock:
        tell.send(("open", 0, 0, ""))
    threads = [threading.Thread(target=perform_all, args=(thread,)) for thread in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


class KilledOverAndOver:
    """A store, and what each thread of its writers has been told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.round = 0
        self.killed_by_point = 0
        self.operations = 0
        self.states = [State(np.zeros(SPACE, np.uint32)) for _ in range(THREADS)]
        self._operation_s = 0.0

    def run(self, after: int, *, part: float = 0.0, point: tuple[int, int, bool] | None = None) -> None:
        """Start a writer, kill it once it told `after` operations, then check the store.

        The kill comes `part` of an operation's usual time after that, so that it hits any moment of one. With
        a `point` the writer kills itself there; only one that told so many operations without it is killed.
        """
        self.round += 1
        hear, tell = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        process = fresh(write_until_killed, self.path, self.round, self.states, tell, point)
        tell.close()
        done, killed_by_point = [0] * THREADS, point is not None
        try:
            if self._hear(hear, done) == "open":
                opened = time.monotonic()
                while sum(done) < after:
                    self._hear(hear, done)
                    self._operation_s = (time.monotonic() - opened) / max(1, sum(done))
                time.sleep(part * self._operation_s)
            killed_by_point = False
            process.kill()
            while True:
                self._hear(hear, done)
        except EOFError:
            pass
        finally:
            process.kill()
            process.join(HANG_S)
        assert process.exitcode == -signal.SIGKILL
        self.operations += sum(done)
        self.killed_by_point += killed_by_point
        self._check(done)

    def _hear(self, hear: Connection, done: list[int]) -> str:
        """Take in what the writer tells next; EOFError where it is dead."""
        assert hear.poll(HANG_S), "the writer hangs"
        what, thread, k, why = hear.recv()
        assert "failed" not in what, f"thread {thread}, {operation(thread, self.round, k).kind}: {why}"
        if what == "done":
            done[thread] = k + 1
        return str(what)

    def _check(self, done: list[int]) -> None:
        allowed = []
        for thread, count in enumerate(done):
            state = self.states[thread]
            for k in range(count):
                state = outcomes(state, operation(thread, self.round, k))[-1]
            allowed.append(outcomes(state, operation(thread, self.round, count)))
        modes = "ra" if self.round % 2 or not filenames.identity(self.path).exists() else "r"
        for mode in modes:  # in every other round the next writer itself recovers from the kill
            if mode == "r" and not filenames.identity(self.path).exists():
                assert sum(done) == 0
                continue
            with open_store(self.path, mode) as store:
                if mode == "r" and "default" not in store.datasets():
                    assert sum(done) == 0  # killed while it was made
                    continue
                assert store.verify().ok
                now = [observed(store, thread) for thread in range(THREADS)]
                for thread, state in enumerate(now):
                    assert any(same(state, each) for each in allowed[thread]), self._told(
                        thread, done, state, allowed
                    )
                scanned = sum(len(page.ids) for page in store.dataset().scan())
                assert scanned == sum(int(np.count_nonzero(state.marks)) for state in now)
                self.states = now

    def _told(self, thread: int, done: list[int], state: State, allowed: list[list[State]]) -> str:
        wanted = allowed[thread][0].marks
        lost = int(np.count_nonzero((wanted != 0) & (state.marks == 0)))
        differ = int(np.count_nonzero(wanted != state.marks))
        kind = operation(thread, self.round, done[thread]).kind
        return f"round {self.round}, thread {thread}: {lost} lost, {differ} differ; {kind} was under way"


def test_a_writer_killed_at_random_moments_loses_nothing_acknowledged(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    store = KilledOverAndOver(tmp_path / "store")
    while store.round < 9 or store.operations <= 200:
        store.run(int(rng.integers(0, 60)), part=float(rng.uniform()))


@pytest.mark.parametrize("after", [False, True])
def test_a_writer_killed_at_every_kind_of_step_loses_nothing_acknowledged(
    tmp_path: Path, after: bool
) -> None:
    rng = np.random.default_rng([SEED, after])
    store = KilledOverAndOver(tmp_path / "store")
    to_be_met = 0
    for which, (owner, name) in enumerate(POINTS):
        often = owner in (Rocks, MarkFile)
        is_met = name != "write_durably"  # which is called only when a store is opened
        for count in [rng.integers(5, 60)] if often else [rng.integers(1, 6), rng.integers(6, 25)]:
            store.run(UNLIMITED if is_met else ENOUGH, point=(which, int(count), after))
            to_be_met += is_met
    assert store.killed_by_point == to_be_met


def test_a_store_killed_while_being_created_or_opened_opens_again(tmp_path: Path) -> None:
    for which, (owner, _) in enumerate(POINTS):
        if owner in (Rocks, MarkFile, filenames):
            for count in (1, 2):
                store = KilledOverAndOver(tmp_path / f"store-{which}-{count}")
                store.run(ENOUGH, point=(which, count, True))


def test_a_store_killed_while_rocksdb_created_its_log_opens_again(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    half_made = Rdict(str(tmp_path / "log"), Options(raw_mode=True))  # the column family "wal" comes second
    half_made.close()
    with open_store(tmp_path) as store:
        put(store, 0, 10)
        assert_holds(store, 0, 10)


def test_the_operations_cover_every_kind_and_a_lost_one_is_noticed() -> None:
    """Guard the test itself: the streams contain every kind, and a lost operation is noticed."""
    kinds = {operation(0, 1, k).kind for k in range(100)}
    assert kinds == {"put", "delete", "insert", "relocate", "load", "flush", "compact", "toggle", "put extra"}
    before = State(np.zeros(SPACE, np.uint32))
    op = next(
        op for op in (operation(1, 1, k) for k in range(100)) if op.kind == "put" and len(op.order) == 2500
    )
    stages = outcomes(before, op)
    assert len(stages) == 4
    assert [int(np.count_nonzero(stage.marks)) for stage in stages] == [0, 1024, 2048, 2500]
    assert not any(same(State(stages[3].marks * 0 + 1), stage) for stage in stages)
