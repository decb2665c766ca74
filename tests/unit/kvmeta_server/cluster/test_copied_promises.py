"""Copies of a move over real replicas: what counts as copied, and what does not yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.moves import Moves
from tests.unit.kvmeta_server.cluster.replicas import Replicas, rows_of

N = 2000
TARGET, OWNERS, LEAVING = 0, (1, 2, 3), 3


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Replicas]:
    """Give four nodes of which the last is drained: the first copies its share, from the other three."""
    made = Replicas(tmp_path, 4)
    draining = made.maps.current.with_node(f"n{LEAVING}", state="draining")
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
    return Moves(replica, replica.state, membership, peers, world, 0.0, 1e9)


def incoming(cluster_map: ClusterMap) -> np.ndarray:
    return np.flatnonzero(cluster_map.incoming(TARGET))


def test_a_copy_waits_until_enough_owners_tell_up_to_where_they_agreed(four: Replicas) -> None:
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
        four.replicas[slot].repaired("default", partitions, agreed)

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
    assert (ranges.repaired[partitions] == agreed).all()
