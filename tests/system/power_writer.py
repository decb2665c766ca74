"""A process that works until the power goes: the store's writers, and what a cluster's node does to its disk.

It first judges what the cut before it left: `Known` is what the one who cuts has heard. Then it works with
several threads and tells, beside what is done, what is under way: flushes, merges, loads and the like, from
the engine's own functions, begun when their locks are held.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.background import Background
from kvmeta.engine.engine import Engine
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.rocks import Batch
from kvmeta.engine.tree import Tree
from kvmeta_server.cluster import node_state
from tests.crash.node_work import Hinting, Moving, wrong_hints, wrong_moves
from tests.crash.operations import SPACE, State, observed, operation, outcomes, perform, same
from tests.crash.script import where
from tests.crash.small import open_store

THREADS = 2
MOVER, HINTER = THREADS, THREADS + 1
HINTS_A_REPLAY = 4
HINT_S = 0.005

OPEN, PUT, FLUSH, MERGE, MANIFEST, LOAD = "open", "put", "flush", "merge", "manifest", "load"
INGEST, DROP, NODE_FILE, HINT_REPLAY = "ingest", "drop", "node file", "hint replay"
WORK = (OPEN, PUT, FLUSH, MERGE, MANIFEST, LOAD, INGEST, DROP, NODE_FILE, HINT_REPLAY)
"""What can be under way when the power goes."""
FAVOURED = {
    FLUSH: ("flush", "put"),
    MERGE: ("compact", "put"),
    MANIFEST: ("toggle", "flush"),
    LOAD: ("load",),
}
"""The operations of a writer that bring some of it about."""


class Round(NamedTuple):
    """Which streams of operations a round's writers follow."""

    number: int
    favoured: tuple[str, ...] = ()


@dataclass
class Known:
    """What the one who cuts knows: states before the round, and what was done in it for sure or perhaps."""

    round: Round = field(default_factory=lambda: Round(0))
    states: list[State] = field(default_factory=lambda: [State(np.zeros(SPACE, np.uint32))] * THREADS)
    sure: list[int] = field(default_factory=lambda: [0] * (THREADS + 1))
    """Of each writer, operations of the round; of the mover, steps since the store was made."""
    possible: list[int] = field(default_factory=lambda: [0] * (THREADS + 1))
    replayed: set[int] = field(default_factory=set)
    hints: int = 0
    """How many hints may have been kept since the store was made."""


class Message(NamedTuple):
    """What a writer tells.

    `what`: "begin" and "end" (`number`: which, `text`: of what); "right" (`value`: states) or "wrong"
    (`text`); "done" (`number`: of the thread's), "kept" (`number`: of hints), "replayed" (`value`: numbers);
    "failed" (`text`: how, `value`: whether typed).
    """

    what: str
    thread: int = 0
    number: int = 0
    text: str = ""
    value: Any = None


class Teller:
    """Tells from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def __call__(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(Message(*message))

    @contextmanager
    def under_way(self, what: str) -> Iterator[None]:
        """Tell that something begins, and that it ended well."""
        number = next(self._numbers)
        self("begin", 0, number, what)
        yield
        self("end", 0, number, what)

    def watch(self, owner: Any, name: str, what: str) -> None:
        """Tell of every call of `owner.name`."""
        real: Callable[..., Any] = getattr(owner, name)

        def stand_in(*args: Any, **named: Any) -> Any:
            with self.under_way(what):
                return real(*args, **named)

        setattr(owner, name, stand_in)


def watch_all(tell: Teller) -> None:
    """Tell of all that this process will do to a store."""
    flush_oldest, ingest, durably = Background._flush_oldest, Engine.ingest, Engine._durably

    def flush(self: Background, tree: Tree) -> None:
        with self.lock:  # which it takes itself: what waits for it is not under way
            if tree.frozen:
                with tell.under_way(FLUSH):
                    flush_oldest(self, tree)

    def ingest_run(self: Engine, *args: Any) -> None:
        with self.background.lock, tell.under_way(INGEST):
            ingest(self, *args)

    def write(self: Engine, batch: Batch) -> None:
        with tell.under_way(MANIFEST if batch.manifest else PUT):
            durably(self, batch)

    Background._flush_oldest, Engine.ingest, Engine._durably = flush, ingest_run, write  # type: ignore[method-assign]
    tell.watch(Background, "_merge_step", MERGE)
    tell.watch(Background, "drop", DROP)
    tell.watch(Engine, "load", LOAD)
    tell.watch(node_state, "_write", NODE_FILE)
    tell.watch(Hinting, "replay", HINT_REPLAY)


def work_until_the_power_goes(
    path: Path, known: Known, round_: Round, options: EngineOptions, connection: Connection
) -> None:
    """Open the store, judge it, tell "right" with the states found or "wrong", and work."""
    tell = Teller(connection)
    try:
        with tell.under_way(OPEN):
            store = open_store(path, options=options)
        states, wrong = judged(store, known)
    except kvmeta.CorruptionError as error:
        states, wrong = [], str(error)
    except BaseException as error:  # noqa: BLE001 - the one who cuts must hear of it
        tell("failed", 0, 0, where(error), isinstance(error, kvmeta.KvmetaError))
        return
    if wrong:
        tell("wrong", 0, 0, wrong)
        return
    tell("right", 0, 0, "", states)
    watch_all(tell)
    work: list[Callable[[], None]] = [
        partial(_write, store, round_, thread, states[thread], tell) for thread in range(THREADS)
    ]
    work += [partial(_move, store, known.sure[MOVER], tell), partial(_hint, store, known.hints, tell)]

    def until_it_fails(thread: int) -> None:
        try:
            work[thread]()
        except BaseException as error:  # noqa: BLE001 - the one who cuts must hear of it
            tell("failed", thread, 0, where(error), isinstance(error, kvmeta.KvmetaError))

    threads = [threading.Thread(target=until_it_fails, args=(thread,)) for thread in range(len(work))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _write(store: EmbeddedStore, round_: Round, thread: int, state: State, tell: Teller) -> None:
    for k in itertools.count():
        op = operation(thread, round_.number, k, round_.favoured)
        perform(store, op, state)
        state = outcomes(state, op)[-1]
        tell("done", thread, k + 1)


def _move(store: EmbeddedStore, first: int, tell: Teller) -> None:
    moving = Moving(store)
    for step in itertools.count(first):
        moving.step(step)
        tell("done", MOVER, step + 1)


def _hint(store: EmbeddedStore, first: int, tell: Teller) -> None:
    hinting = Hinting(store)
    for number in itertools.count(first):
        tell("kept", HINTER, number + 1)  # before it is: it may be there from now on
        hinting.add(number)
        if number % HINTS_A_REPLAY == 0:
            tell("replayed", HINTER, 0, "", hinting.replay())
        time.sleep(HINT_S)


def judged(store: EmbeddedStore, known: Known) -> tuple[list[State], str | None]:
    """Return the states found and what is wrong with them, or None."""
    now = [observed(store, thread) for thread in range(THREADS)]
    for thread in range(THREADS):
        state, allowed = known.states[thread], []
        for k in range(known.possible[thread] + 1):
            stages = outcomes(state, operation(thread, known.round.number, k, known.round.favoured))
            if k >= known.sure[thread]:
                allowed += stages
            state = stages[-1]
        if not any(same(now[thread], each) for each in allowed):
            wanted = allowed[0].marks
            lost = int(np.count_nonzero((wanted != 0) & (now[thread].marks == 0)))
            differ = int(np.count_nonzero(wanted != now[thread].marks))
            return now, f"thread {thread}: {lost} lost, {differ} differ"
    if not store.verify().ok:
        return now, "a damaged page"
    wrong = wrong_moves(store, known.sure[MOVER], known.possible[MOVER])
    return now, wrong or wrong_hints(store, known.replayed, known.hints)
