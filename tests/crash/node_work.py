"""What a cluster's node does to its disk beyond reads and writes: partitions move, hints wait, small files.

`Moving` copies and drops partitions as `cluster/moves.py` does, with the peers' rows made up; `Hinting` keeps
hints and replays them into the same store. Both work in steps that can be taken again after a crash, and both
say what is wrong with what a crash left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.commit import APPLY, Write
from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION, WORD3, WORD4
from kvmeta.version import MS_SHIFT
from kvmeta_server.cluster.cluster_map import COPYING, STABLE, ClusterMap, Member, found
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.node_state import Identity, NodeState
from kvmeta_server.cluster.replica import Replica

MOVED, HINTED = "moved", "hinted"
PARTITIONS = 8
HELD_MOVES = 1  # a partition is dropped that many copies later
MOVED_ROWS = 600
CHANGED_ROWS = 50  # of a copied partition, written while it moves
HINT_ROWS = 40
SELF, PEER = 1, 0  # slots

Rows = NDArray[np.uint64]
FIRST_MAP = found(
    "faults", bytes(16), Member(PEER, "peer", "peer:1"), partitions=PARTITIONS, replicas=1, write_quorum=1
)


def disk_of(store: EmbeddedStore) -> FileDisk:
    """Return a node's small files beside its store."""
    return FileDisk(store.engine.path / "node")


def copied_rows(move: int) -> Rows:
    """Return the rows u8[n, 6] that the `move`-th copy brings, sorted."""
    partition = np.uint64(move % PARTITIONS)
    rows = np.zeros((MOVED_ROWS, ROW_WORDS), np.uint64)
    step = np.uint64((1 << FIRST_MAP.shift) // MOVED_ROWS)
    rows[:, HIGH] = (partition << np.uint64(FIRST_MAP.shift)) + step * np.arange(MOVED_ROWS, dtype=np.uint64)
    rows[:, LOW] = rows[:, HIGH] * np.uint64(0x9E3779B97F4A7C15)
    rows[:, VERSION] = (2 * move + 1) << MS_SHIFT
    rows[:, WORD3], rows[:, WORD4] = move + 1, np.arange(MOVED_ROWS)
    return rows


def changed_rows(move: int) -> Rows:
    """Return the copied rows that are written while they move, as they are then."""
    rows = copied_rows(move)[:: MOVED_ROWS // CHANGED_ROWS]
    rows[:, VERSION] = (2 * move + 2) << MS_SHIFT
    rows[:, WORD4] += 1000
    return rows


def hint_rows(number: int) -> Rows:
    """Return the rows u8[n, 6] of a hint; the first tells its number."""
    rows = np.zeros((HINT_ROWS, ROW_WORDS), np.uint64)
    rows[:, : LOW + 1] = np.random.default_rng(number).integers(0, 1 << 64, (HINT_ROWS, 2), np.uint64)
    rows[:, VERSION] = (number + 1) << MS_SHIFT
    rows[:, WORD3], rows[:, WORD4] = number + 1, np.arange(HINT_ROWS)
    return rows


def held_mask(tree_rows: Rows, store: EmbeddedStore, dataset: str) -> NDArray[np.bool_]:
    """Return bool[n]: which of the rows are held exactly so."""
    held = store.engine.tree(dataset).held(np.ascontiguousarray(tree_rows[:, : LOW + 1]))
    assert not held.failed.any()
    same = held.versions == tree_rows[:, VERSION]
    return same & (held.locations == tree_rows[:, WORD3:]).all(axis=1)


def any_held(tree_rows: Rows, store: EmbeddedStore, dataset: str) -> NDArray[np.bool_]:
    """Return bool[n]: of which of the rows' IDs anything is held."""
    held = store.engine.tree(dataset).held(np.ascontiguousarray(tree_rows[:, : LOW + 1]))
    return (held.versions != 0) | (held.failed != 0)


class OneDataset(Replica):
    """A replica of MOVED alone: other threads make and drop datasets, which in a node its tables do."""

    def datasets(self) -> list[str]:
        """Return MOVED."""
        return [MOVED]


class Moving:
    """Partitions that come and go: step 2 n copies one, step 2 n + 1 drops an earlier one."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._state = NodeState(disk_of(store))
        if self._state.identity is None:
            self._state.set_identity(Identity(bytes(16).hex(), "faults", "self", SELF))
        store.engine.create_dataset(MOVED, exist_ok=True)
        self._map = self._state.map() or replace(FIRST_MAP, epoch=1)
        self._replica = OneDataset(store.engine, self._state, SELF, self._map)

    def step(self, number: int) -> None:
        """Do step `number`; again, where it was interrupted."""
        move, drops = divmod(number, 2)
        self._state.reserve((number + 1) << MS_SHIFT)
        if not drops:
            self._copy(move)
        elif move >= HELD_MOVES:
            self._drop((move - HELD_MOVES) % PARTITIONS)

    def _copy(self, move: int) -> None:
        partition = move % PARTITIONS
        here = np.array([partition])
        if self._state.leftover(PARTITIONS)[partition]:
            self._drop(partition)  # as before every copy: it may be older than a purge
        self._adopt(partition, PEER, SELF, COPYING)
        self._store.engine.ingest(self._replica.tree(MOVED), copied_rows(move))
        promised = np.array([move + 1], np.uint64)
        self._state.ranges(MOVED, PARTITIONS).reset(here, promised, promised)
        copied = self._state.copied(PARTITIONS)
        copied[partition] = move + 1
        self._state.set_copied(copied)
        self._adopt(partition, SELF, SELF, STABLE)
        self._replica.apply(MOVED, 0, changed_rows(move))

    def _drop(self, partition: int) -> None:
        self._adopt(partition, PEER, PEER, STABLE)
        tree = self._replica.tree(MOVED)
        self._store.engine.background.drop(tree, (self._map.stretch(partition),))
        gone = np.zeros(PARTITIONS, np.bool_)
        gone[partition] = True
        self._replica.clean(gone)

    def _adopt(self, partition: int, owner: int, target: int, phase: int) -> None:
        now = self._map
        owners, targets, phases = now.owners.copy(), now.targets.copy(), now.phase.copy()
        owners[partition], targets[partition], phases[partition] = owner, target, phase
        changed = now.changed.copy()
        changed[partition] = now.epoch + 1
        self._map = replace(
            now, epoch=now.epoch + 1, owners=owners, targets=targets, phase=phases, changed=changed
        )
        self._replica.adopt(self._map)


def wrong_moves(store: EmbeddedStore, sure: int, possible: int) -> str | None:
    """Return what is wrong after a crash: steps below `sure` are done, none above `possible` was begun."""
    state = NodeState(disk_of(store))
    if not sure:  # the node may not even have been made
        return None
    cluster_map, left = state.map() or FIRST_MAP, state.leftover(PARTITIONS)
    copied, promised = state.copied(PARTITIONS), state.ranges(MOVED, PARTITIONS).promised
    ceiling = state.identity.ceiling if state.identity else 0
    if ceiling < sure << MS_SHIFT:
        return f"the clock's ceiling is {ceiling >> MS_SHIFT}, and {sure} was noted"
    for partition in range(PARTITIONS):
        steps = [step for step in range(possible + 1) if _partition(step) == partition]
        before = [step for step in steps if step < sure]
        if not before:
            continue
        open_steps = [step for step in steps if step >= sure]
        last = before[-1]
        move = last // 2 if last % 2 == 0 else last // 2 - HELD_MOVES
        rows = _copied_and_changed(move)
        told = f"partition {partition}, step {last} done, {open_steps} perhaps"
        if not open_steps and last % 2 == 0:
            if not held_mask(rows, store, MOVED).all():
                return f"{told}: rows of its copy are lost"
            if copied[partition] != move + 1 or promised[partition] != move + 1 or left[partition]:
                return f"{told}: what the node remembers is not that it holds it"
            if not _owned(cluster_map, partition):
                return f"{told}: the map says that it is not owned"
        elif not open_steps:
            if any_held(rows, store, MOVED).any():
                return f"{told}: rows are back that were dropped"
            if left[partition] or _owned(cluster_map, partition):
                return f"{told}: what the node remembers is not that it dropped it"
        else:
            allowed = [rows, copied_rows(move)]
            for step in open_steps:
                if step % 2 == 0:
                    allowed += [_copied_and_changed(step // 2), copied_rows(step // 2)]
            right = np.logical_or.reduce([held_mask(each, store, MOVED) for each in allowed])
            there = any_held(rows, store, MOVED)
            if (there & ~right).any():
                return f"{told}: a wrong row"
            if last % 2 == 0 and _owned(cluster_map, partition) and not there.all():
                return f"{told}: rows are gone of a partition that is owned"
            if last % 2 and there.any() and not there.all():
                return f"{told}: half a copy"
            noted = any(step % 2 == 0 and copied[partition] == step // 2 + 1 for step in open_steps)
            if last % 2 and noted and len(open_steps) == 1 and not there.all():
                return f"{told}: noted as copied without its rows"
    return None


def _partition(step: int) -> int | None:
    move, drops = divmod(step, 2)
    if not drops:
        return move % PARTITIONS
    return (move - HELD_MOVES) % PARTITIONS if move >= HELD_MOVES else None


def _copied_and_changed(move: int) -> Rows:
    rows = copied_rows(move)
    rows[:: MOVED_ROWS // CHANGED_ROWS] = changed_rows(move)
    return rows


def _owned(cluster_map: ClusterMap, partition: int) -> bool:
    return bool(cluster_map.held_by(SELF)[partition])


class Hinting:
    """Hints for one node, replayed into a dataset of this store."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        store.engine.create_dataset(HINTED, exist_ok=True)
        self._files = HintFiles(disk_of(store))

    def add(self, number: int) -> None:
        """Keep hint `number`."""
        self._files.add(PEER, HINTED, hint_rows(number))

    def replay(self) -> list[int]:
        """Apply all that waits; return the hints' numbers. AssertionError where one is not what was kept."""
        numbers: list[int] = []
        end = 0
        for hint in self._files.read(PEER):
            numbers.append(hint_number(hint.dataset, hint.rows))
            self._store.engine.commit(Write(self._store.engine.tree(HINTED), APPLY, np.array(hint.rows)))
            end = hint.end
        self._files.done(PEER, end)
        return numbers


def hint_number(dataset: str, rows: Rows) -> int:
    """Return a hint's number; AssertionError where it is not one that was kept."""
    number = int(rows[0, WORD3]) - 1
    assert dataset == HINTED
    assert np.array_equal(rows, hint_rows(number)), f"hint {number} has wrong rows"
    return number


def wrong_hints(store: EmbeddedStore, replayed: Iterable[int], kept: int) -> str | None:
    """Return what is wrong after a crash: `replayed` hints were acknowledged, of `kept` some may be."""
    if HINTED not in store.datasets():
        return "the dataset is gone" if list(replayed) else None
    waiting = HintFiles(disk_of(store))
    numbers = [hint_number(hint.dataset, hint.rows) for hint in waiting.read(PEER)]
    if numbers != sorted(set(numbers)) or any(number >= kept for number in numbers):
        return f"hints wait that were not kept so: {numbers}"
    if not kept:
        return None
    rows = np.concatenate([hint_rows(number) for number in range(kept)])
    held = held_mask(rows, store, HINTED).reshape(kept, HINT_ROWS)
    there = any_held(rows, store, HINTED).reshape(kept, HINT_ROWS)
    lost = [number for number in replayed if not held[number].all()]
    if lost:
        return f"hints {lost} were applied and are lost"
    if (there != held).any() or (held.any(axis=1) != held.all(axis=1)).any():
        return "half a hint, or a wrong row of one"
    return None
