"""Copies of a move over real replicas: what counts as copied, and what must not come in meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.handoff import Handoff
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.moves import Moves
from tests.unit.kvmeta_server.cluster.replicas import Replicas, agree, nothing, rows_of

N = 2000
TARGET, OWNERS, LEAVING, GONE = 0, (1, 2, 3), 3, 9


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Replicas]:
    """Give four nodes of which the last is drained: the first copies its share, from the other three."""
    made = Replicas(tmp_path, 4)
    draining = made.maps.current.with_member(f"n{LEAVING}", state="draining")
    made.maps.current = draining
    made.adopt(draining)
    yield made
    made.close()


async def at_once(work: Callable[[], Any]) -> Any:
    return work()


def moves_of(replicas: Replicas) -> Moves:
    membership: Any = SimpleNamespace(current=replicas.maps.current)
    world: Any = SimpleNamespace(
        background=SimpleNamespace(run=at_once), log=SimpleNamespace(warning=lambda *_, **__: None)
    )
    peers: Any = replicas
    replica = replicas.replicas[TARGET]
    return Moves(replica, replica.state, membership, peers, world, nothing, 0.0, 1e9)


def incoming(cluster_map: ClusterMap) -> np.ndarray:
    return np.flatnonzero(cluster_map.incoming(TARGET))


def test_a_copy_waits_until_enough_owners_report_their_agreed_version(four: Replicas) -> None:
    """Two of three owners know of an agreement and are read; then they are away, and the third is not enough.

    Where the two have purged a tombstone, a copy has neither that nor, from the third, the promise: it would
    take a late hint, and what was deleted would be there again.
    """
    cluster_map = four.maps.current
    partitions = incoming(cluster_map)
    assert len(partitions)
    assert (np.sort(cluster_map.owners[partitions], axis=1) == OWNERS).all()
    rows = rows_of(N)
    rows[:, 2] = agreed = four.stores[1].engine.clock.stamp()
    for slot in OWNERS:
        four.replicas[slot].apply("default", 0, rows)
    for slot in OWNERS[:2]:
        agree(four.replicas[slot], partitions, agreed)

    moves = moves_of(four)
    ingest = moves._ingest

    async def ingest_then_part(dataset: str, parts: list[np.ndarray]) -> None:
        await ingest(dataset, parts)
        four.down.update(OWNERS[:2])

    moves._ingest = ingest_then_part  # type: ignore[method-assign]
    four.run(moves._copy_chunk(cluster_map, partitions))
    assert moves.copied(cluster_map) == []

    moves._ingest = ingest  # type: ignore[method-assign]
    four.down = {OWNERS[0]}
    four.run(moves._copy_chunk(cluster_map, partitions))
    assert moves.copied(cluster_map) == partitions.tolist()
    ranges = four.replicas[TARGET].state.ranges("default", cluster_map.partitions)
    assert (ranges.promised[partitions] == agreed).all()
    assert (ranges.agreed[partitions] == agreed).all()


@pytest.mark.parametrize("slot", [TARGET, GONE])
def test_a_copying_node_refuses_hints_of_purged_rows(four: Replicas, tmp_path: Path, slot: int) -> None:
    """The owners have promised not to take it; the target has not, and all would get it from there."""
    cluster_map = four.maps.current
    partitions = incoming(cluster_map)
    rows = rows_of(N)
    rows[:, 2] = four.stores[1].engine.clock.stamp()
    rows = rows[np.isin(cluster_map.partition_of(rows[:, 0]), partitions)]
    agreed = four.stores[1].engine.clock.stamp()
    for owner in OWNERS:
        four.replicas[owner].state.ranges("default", cluster_map.partitions).promise(partitions, agreed)
        agree(four.replicas[owner], partitions, agreed)
    hints = HintFiles(FileDisk(tmp_path / "hints"))
    hints.add(slot, "default", rows)
    log: Any = SimpleNamespace(info=lambda *_, **__: None)
    handoff = Handoff(hints, four.maps, four, four.coordinator, lambda: ["default"], log, 0.0)

    four.run(handoff._send(slot))
    assert four.holding(rows) == [0] * 4
    assert hints.waiting() == {slot: len(rows)}

    four.run(moves_of(four)._copy_chunk(cluster_map, partitions))
    four.maps.current = cluster_map.switched(partitions)
    four.adopt(four.maps.current)
    four.run(handoff._send(slot))
    assert four.holding(rows) == [0] * 4
    assert not hints.waiting()
