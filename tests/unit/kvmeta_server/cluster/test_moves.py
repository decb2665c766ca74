"""Moves over real replicas on simulated time: bounded, resumed, under a lease, and nothing dropped unsaid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvmeta.protocol.codes import Outcome
from kvmeta_server.cluster import moves
from kvmeta_server.cluster.cluster_map import SWITCHED, ClusterMap
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.moves import Moves
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.rows import Applied
from kvmeta_server.simulator.loop import SimulatedLoop
from tests.unit.kvmeta_server.cluster.replicas import PARTITIONS, Replicas, nothing, rows_of

N = 4000
Rows = np.ndarray


class Lane:
    """A lane that does its work at once."""

    async def run(self, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.001)
        return work()


class Log:
    """A log of which the warnings are kept."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.reasons.append(str(fields.get("reason")))

    def info(self, event: str, **fields: Any) -> None: ...

    def fault(self, where: str, error: BaseException) -> None:
        raise error


class Four(Replicas):
    """Four nodes, three replicas, on simulated time. `lease_s` is what is left of node 0's lease."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 4)
        self.loop.close()
        self.loop = SimulatedLoop()  # type: ignore[assignment]
        self.lease_s = 5.0
        self.log = Log()
        self.fencing: set[int] = set()
        self.behind: set[int] = set()
        """Nodes that have not heard of the map."""
        self.path = path

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(self.loop.create_task(work))

    def lease_left_s(self) -> float:
        return self.lease_s

    async def is_driver(self) -> bool:
        return False

    @property
    def current(self) -> ClusterMap:
        return self.maps.current

    async def newer_than(self, epoch: int, timeout_s: float) -> None:
        await asyncio.sleep(min(timeout_s, 0.1))

    async def state(self, slot: int) -> Any:
        epoch = 0 if slot in self.behind else self.replicas[slot].persisted
        return SimpleNamespace(epoch=epoch, copied=[])

    async def apply(self, slot: int, dataset: str, epoch: int, rows: Rows, **why: bool) -> Applied:
        if slot in self.fencing:
            return Applied(np.full(len(rows), Outcome.FENCED, np.uint8), np.zeros(len(rows), np.uint64))
        return await super().apply(slot, dataset, epoch, rows, **why)

    def moves(self, rows_s_max: float = 1e9) -> Moves:
        """Return node 0's part in moves, as after a start of the node."""
        state = NodeState(FileDisk(self.path / "0" / "node"))
        world = SimpleNamespace(background=Lane(), log=self.log)
        return Moves(self.replicas[0], state, self, self, world, nothing, 0.1, rows_s_max)  # type: ignore[arg-type]

    def set_map(self, cluster_map: ClusterMap) -> None:
        self.maps.current = cluster_map
        self.adopt(cluster_map)

    def put(self, rows: np.ndarray) -> np.ndarray:
        """Put rows at their owners."""
        rows[:, 2] = self.stores[0].engine.clock.stamp()
        for replica in self.replicas.values():
            replica.apply("default", 0, rows)
        return rows

    def left_over(self) -> int:
        """Return how many partitions node 0 holds and owns no more."""
        return int(self.replicas[0].state.leftover(PARTITIONS).sum())

    def work(self, node: Moves, until: Callable[[], bool], seconds: float = 3600.0) -> float:
        """Let a node work until something is true; return the simulated seconds it took."""

        async def working() -> float:
            started = self.loop.time()
            task = asyncio.ensure_future(node.run())
            while not until() and self.loop.time() < started + seconds:
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return self.loop.time() - started

        return float(self.run(working()))


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Four]:
    made = Four(tmp_path)
    yield made
    made.close()


def draining(four: Four) -> tuple[int, int]:
    """Let node 3 drain; return how many partitions and rows node 0 has to copy for it."""
    rows = four.put(rows_of(N))
    held = four.current
    four.set_map(held.with_member("n3", state="draining"))
    incoming = four.current.incoming(0)
    partitions = four.current.partition_of(rows[:, 0])
    return int(incoming.sum()), int(incoming[partitions].sum())


def test_a_copy_takes_no_more_rows_a_second_than_it_may(four: Four) -> None:
    partitions, rows = draining(four)
    node = four.moves(rows_s_max=1000)
    took = four.work(node, lambda: len(node.copied(four.current)) == partitions)
    assert node.rows_copied == rows
    assert took >= rows / 1000


def test_a_copy_resumes_where_it_was_when_the_node_stopped(
    four: Four, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "CHUNK", 1)
    partitions, rows = draining(four)
    before = four.moves(rows_s_max=10_000)
    four.work(before, lambda: len(before.copied(four.current)) >= partitions // 2)
    assert 0 < before.rows_copied < rows
    after = four.moves()
    assert 0 < len(after.copied(four.current)) < partitions
    four.work(after, lambda: len(after.copied(four.current)) == partitions)
    assert 0 < after.rows_copied < rows
    assert before.rows_copied + after.rows_copied >= rows


def test_a_node_that_loses_its_lease_copies_no_further_chunk(
    four: Four, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "CHUNK", 1)
    draining(four)
    node = four.moves()

    def one_is_copied() -> bool:
        if node.rows_copied:
            four.lease_s = 0.0
        return False

    four.work(node, one_is_copied, seconds=5)
    assert len(node.copied(four.current)) == 1


def leaving(four: Four) -> tuple[np.ndarray, int]:
    """Let node 0 own nothing any more, its last owners' copies made; return what it holds, and how much."""
    rows = four.put(rows_of(N))
    four.set_map(four.current.with_member("n0", state="draining"))
    for slot in (1, 2, 3):  # they have copied
        four.replicas[slot].apply("default", 0, rows)
    four.set_map(four.current.switched(range(PARTITIONS)))
    four.set_map(four.current.finished(range(PARTITIONS)))
    held = four.holding(rows)
    assert min(held[1:]) == N
    return rows, held[0]


def test_rows_that_an_owner_lacks_are_sent_before_they_are_dropped(four: Four) -> None:
    _, held = leaving(four)
    lost = rows_of(1, seed=5)
    lost[:, 2] = four.stores[0].engine.clock.stamp()
    four.stores[0].engine.ingest(four.replicas[0].tree("default"), lost)
    four.fencing = {1, 2, 3}
    node = four.moves()
    four.work(node, lambda: False, seconds=5)
    assert any("does not take what is handed over" in reason for reason in four.log.reasons)
    assert four.holding(lost)[0] == 1, "dropped though no owner took it"
    four.fencing = set()
    four.work(node, lambda: not four.left_over(), seconds=60)
    assert four.holding(lost) == [0, 1, 1, 1]
    assert held


def test_a_removed_node_driving_moves_does_not_count_itself(
    four: Four,
) -> None:
    """Of two owners that are left one would do then, and the other could acknowledge by the map before."""
    four.set_map(four.current.with_member("n0", state="removed"))
    four.set_map(four.current.switched(range(PARTITIONS)))
    held_by_it = (four.current.owners == 0).any(axis=1)
    node = four.moves()
    four.behind = {2, 3}
    assert not four.run(node._known_to_enough(four.current, SWITCHED))[held_by_it].any()
    four.behind = set()
    assert four.run(node._known_to_enough(four.current, SWITCHED))[held_by_it].all()


def test_a_drop_completes_when_owners_hold_newer_rows(four: Four) -> None:
    rows, _ = leaving(four)
    newer = rows.copy()
    newer[:, 3] = 9
    four.put(newer)
    four.work(four.moves(), lambda: not four.left_over(), seconds=60)
    assert four.holding(rows)[0] == 0
    assert four.holding(newer)[1:] == [N] * 3
