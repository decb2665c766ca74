"""Streams of operations that follow from a seed, and the states they may leave, done or interrupted.

Each thread of a writer has its own IDs and its own stream, so whoever knows how many of a thread's operations
were acknowledged knows what the store must hold for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvmeta.embedded import EmbeddedStore
from tests.crash.small import TINY, locations

SPACE = 4000  # IDs of one thread
SEED = 20_240_229
EXTRA = "extra"
Marks = NDArray[np.uint32]  # by ID, the mark of the operation whose location is held; 0: absent


@dataclass(frozen=True)
class State:
    """What a thread left: its IDs in the default dataset, and those of EXTRA (None: no such dataset)."""

    marks: Marks
    extra: Marks | None = None


@dataclass(frozen=True)
class Operation:
    """The k-th operation of a thread in a round."""

    kind: str
    first: int
    order: NDArray[np.int64]  # which of the thread's IDs, from 0
    mark: int


def operation(thread: int, round_: int, k: int, favoured: tuple[str, ...] = ()) -> Operation:
    """Return the k-th operation of a thread; about half are of its `favoured` kinds."""
    rng = np.random.default_rng([SEED, thread, round_, k])
    kinds = ["put"] * 7 + ["delete"] * 3 + ["insert"] * 3 + ["relocate"] * 3 + ["load", "load", "flush"]
    if thread == 0:
        kinds += ["compact", "toggle", "put extra", "put extra"]
    kinds += [kind for kind in favoured if kind in kinds] * (len(kinds) // max(1, len(favoured)))
    n = int(rng.choice([1, 50, 900, 2500]))
    order = rng.permutation(SPACE)[:n]
    return Operation(str(rng.choice(kinds)), thread * 1_000_000, order, round_ * 10_000 + k + 1)


def outcomes(before: State, op: Operation) -> list[State]:
    """Return the states an interrupted operation may leave, the last being the one it leaves when done."""
    if op.kind in ("flush", "compact"):
        return [before]
    if op.kind == "toggle":
        made = np.zeros(SPACE, np.uint32) if before.extra is None else None
        return [before, replace(before, extra=made)]
    if op.kind == "put extra":
        if before.extra is None:
            return [before]
        return [replace(before, extra=marks) for marks in _stages(before.extra, op, np.ones(SPACE, np.bool_))]
    takes_effect = {"insert": before.marks == 0, "relocate": before.marks != 0}.get(op.kind)
    if takes_effect is None:
        takes_effect = np.ones(SPACE, np.bool_)
    return [replace(before, marks=marks) for marks in _stages(before.marks, op, takes_effect)]


def _stages(marks: Marks, op: Operation, takes_effect: NDArray[np.bool_]) -> list[Marks]:
    chunk = len(op.order) if op.kind == "load" else TINY.batch_rows_max
    stages = [marks]
    for start in range(0, len(op.order), chunk):
        part = op.order[start : start + chunk]
        after = stages[-1].copy()
        after[part[takes_effect[part]]] = 0 if op.kind == "delete" else op.mark
        stages.append(after)
    return stages


def perform(store: EmbeddedStore, op: Operation, before: State) -> None:
    """Do it."""
    some = (op.first + op.order).astype(np.uint64)
    where, dataset = locations(some, op.mark), store.dataset()
    if op.kind == "put":
        dataset.put(some, where)
    elif op.kind == "delete":
        dataset.delete(some)
    elif op.kind == "insert":
        assert np.array_equal(dataset.insert(some, where).inserted, before.marks[op.order] == 0)
    elif op.kind == "relocate":
        done = dataset.relocate(some, where, dataset.lookup(some).versions).relocated
        assert np.array_equal(done, before.marks[op.order] != 0)
    elif op.kind == "load":
        dataset.load([(some[:700], where[:700]), (some[700:], where[700:])])
    elif op.kind == "flush":
        store.flush()
    elif op.kind == "compact":
        store.compact()
    elif op.kind == "put extra" and before.extra is not None:
        store.dataset(EXTRA).put(some, where)
    elif op.kind == "toggle" and before.extra is None:
        store.create_dataset(EXTRA)
    elif op.kind == "toggle":
        store.drop_dataset(EXTRA)


def observed(store: EmbeddedStore, thread: int) -> State:
    """Return the state the store holds for a thread; every location must be the one its mark was put with."""

    def marks(dataset: str) -> Marks:
        every = (thread * 1_000_000 + np.arange(SPACE)).astype(np.uint64)
        hit = store.dataset(dataset).lookup(every)
        tags = hit.locations["tag"].astype(np.uint32)
        for mark in np.unique(tags[hit.found]):
            at = hit.found & (tags == mark)
            assert np.array_equal(hit.locations[at], locations(every[at], int(mark)))
        return np.where(hit.found, tags, 0).astype(np.uint32)

    extra = marks(EXTRA) if thread == 0 and EXTRA in store.datasets() else None
    return State(marks("default"), extra)


def same(a: State, b: State) -> bool:
    """Return whether two states are equal."""
    if (a.extra is None) != (b.extra is None):
        return False
    return np.array_equal(a.marks, b.marks) and (a.extra is None or np.array_equal(a.extra, b.extra))  # type: ignore[arg-type]
