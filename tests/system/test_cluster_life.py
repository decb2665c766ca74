"""A cluster's life, on real nodes over a real etcd: death, return, growth, and what must be refused."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta.engine.kernels import hashing
from kvmeta.errors import (
    OutcomeUnknownError,
    UnavailableError,
)
from kvmeta.protocol.codes import Outcome
from tests.cluster import LocalCluster, etcd
from tests.system.clusters import N, held_by, open_at, places, some_ids, three, until

pytestmark = pytest.mark.system
__all__ = ["etcd", "three"]  # fixtures

# Death and return


def test_every_owner_holds_what_was_put(three: LocalCluster) -> None:
    with open_at(three) as store:
        store.dataset().put(some_ids(), places())
    for name in three.nodes:
        until(lambda name=name: held_by(three, name) == N, name)


def test_a_cluster_works_without_one_node_which_later_catches_up(three: LocalCluster) -> None:
    with open_at(three) as store:
        ds = store.dataset()
        ds.put(some_ids(), places())
        three.stop("n2")
        ds.put(some_ids(), places(volume=2))
        ds.delete(some_ids(100))
        hit = ds.lookup(some_ids())
        assert hit.found.sum() == N - 100
        assert (hit.locations["volume"][100:] == 2).all()
        assert ds.insert(some_ids(100), places(100)).inserted.all()
        three.start("n2")
        n2 = three.nodes["n2"].local.dataset()
        until(lambda: (n2.lookup(some_ids()).locations["volume"][100:] == 2).all(), "hints")
        until(lambda: n2.lookup(some_ids(100)).found.all(), "hints")


def test_ids_fail_and_never_look_absent_without_two_of_three_nodes(three: LocalCluster) -> None:
    with open_at(three, "n1", timeout_s=20) as store:
        ds = store.dataset()
        ds.put(some_ids(100), places(100))
        three.stop("n2")
        three.stop("n3")
        hit = ds.lookup(some_ids(100), on_error="mask")
        assert hit.failed.all()
        with pytest.raises(kvmeta.IncompleteBatchError, match="replicas"):
            ds.lookup(some_ids(100))
        with pytest.raises(UnavailableError):
            ds.get(some_ids(1))
        with pytest.raises(OutcomeUnknownError) as told:
            ds.put(some_ids(10), places(10))
        assert told.value.failed is not None
        assert told.value.failed.all()
        with pytest.raises(UnavailableError, match="too few replicas"):
            list(ds.scan())
    three.start("n2")
    three.start("n3")


def test_fast_reads_ask_one_replica_and_confirm_misses_at_others(three: LocalCluster) -> None:
    with open_at(three, "n1") as store:
        store.dataset().put(some_ids(), places())
    until(lambda: held_by(three, "n1") == N, "put")
    three.stop("n2")
    three.stop("n3")
    with open_at(three, "n1", consistency="fast", timeout_s=20) as store:
        hit = store.dataset().lookup(some_ids(N + 10), on_error="mask")
        assert hit.found[:N].all()
        assert hit.failed[N:].all()
    three.start("n2")
    three.start("n3")


def test_a_read_repairs_differing_replicas_before_it_answers(three: LocalCluster) -> None:
    """A row that one replica alone holds, as after a write that failed, is at W of them once it was read."""
    rows = np.zeros((1, 6), np.uint64)
    node = three.nodes["n1"].node
    mixed = np.empty((1, 2), np.uint64)
    hashing.mix(some_ids(1).view(np.uint64).reshape(-1, 2), node.backend.local.engine.keys, mixed)
    rows[:, :2], rows[:, 2], rows[:, 3] = mixed, node.backend.local.engine.clock.stamp(), 9
    node.replica.apply("default", 0, rows)
    with open_at(three, "n1") as store:
        found = [store.dataset().lookup(some_ids(1)).found[0] for _ in range(3)]
    assert found[0] == found[1] == found[2]
    holding = [held_by(three, name) for name in three.nodes]
    assert sum(holding) >= 2 or not found[0]


def test_anti_entropy_makes_replicas_equal_and_lets_tombstones_go(three: LocalCluster) -> None:
    with open_at(three) as store:
        ds = store.dataset()
        ds.put(some_ids(), places())
        ds.delete(some_ids(1000))
    until(lambda: all(held_by(three, name) == N - 1000 for name in three.nodes), "writes")
    # n3 loses everything that it has in memory and on disk but its name
    lost = three.nodes["n3"]
    three.run(drop_everything(lost))
    assert held_by(three, "n3") == 0
    time.sleep(0.01)
    with kvmeta.operators.open(three.target) as cluster:
        done = cluster.repair()
        assert done.partitions == 16
        assert done.rows >= N
        assert done.skipped == 0
        assert held_by(three, "n3") == N - 1000
        again = cluster.repair()
        assert again.rows == 0
    for node in three.nodes.values():
        tree = node.local.engine.tree("default")
        assert tree.purge_below > 0
        node.local.compact()
        assert sum(segment.record.tombstones for run in tree.runs for segment in run.segments) == 0
    with open_at(three) as store:
        assert store.dataset().lookup(some_ids()).found.sum() == N - 1000


async def drop_everything(node: object) -> None:
    engine = node.local.engine  # type: ignore[attr-defined]
    await asyncio.to_thread(engine.background.drop, engine.tree("default"), ((0, (1 << 64) - 1),))


def test_a_promise_stops_late_hints_from_bringing_back_deleted_entries(three: LocalCluster) -> None:
    with open_at(three) as store:
        ds = store.dataset()
        ds.put(some_ids(10), places(10))
        version = int(ds.lookup(some_ids(1)).versions[0])
        ds.delete(some_ids(10))
    time.sleep(0.01)
    with kvmeta.operators.open(three.target) as cluster:
        cluster.repair()
        cluster.repair()
    for node in three.nodes.values():
        node.local.compact()
    node = three.nodes["n1"].node
    late = np.zeros((1, 6), np.uint64)
    hashing.mix(some_ids(1).view(np.uint64).reshape(-1, 2), node.backend.local.engine.keys, late)
    late[:, 2] = version
    assert node.replica.apply("default", 0, late).outcomes.tolist() == [Outcome.REFUSED]
    with open_at(three) as store:
        assert not store.dataset().lookup(some_ids(10)).found.any()


def flip_bits(file: Path, pages: tuple[int, ...]) -> None:
    data = bytearray(file.read_bytes())
    for page in pages:
        data[page * 4096 + 99] ^= 4
    file.write_bytes(data)


def digests(cluster: LocalCluster, name: str) -> list[int]:
    nothing = np.zeros(16, np.uint64)
    replica = cluster.nodes[name].node.replica
    told, _ = replica.digests("default", range(16), (1 << 64) - 1, nothing, 0, promise=False)
    return told.reshape(-1).tolist()


def test_a_node_repairs_a_damaged_range_from_other_replicas(three: LocalCluster) -> None:
    with open_at(three) as store, kvmeta.operators.open(three.target) as cluster:
        ds = store.dataset()
        ds.put(some_ids(), places())
        until(lambda: all(held_by(three, name) == N for name in three.nodes), "writes")
        three.nodes["n1"].local.flush()
        three.stop("n1")
        (file,) = (three.path / "n1" / "segments").iterdir()
        flip_bits(file, (5, 6, 90))
        ds.put(some_ids(1000), places(1000, volume=2))
        ds.delete(some_ids(1000, start=1000))
        three.start("n1")
        n1 = three.nodes["n1"].local
        with open_at(three, "n1", consistency="fast", timeout_s=20) as fast:
            assert fast.dataset().lookup(some_ids()[2000:]).found.all()  # which meets the damage
        until(lambda: not n1.dataset().lookup(some_ids(), on_error="mask").failed.any(), "mending")
        until(lambda: digests(three, "n1") == digests(three, "n2") == digests(three, "n3"), "hints")
        mended = {member.name: (member.damaged, member.mended) for member in cluster.status().members}
        assert mended == {"n1": (0, 3), "n2": (0, 0), "n3": (0, 0)}
        assert n1.verify().ok
        assert n1.stats().datasets[0].quarantined_runs == 0
        assert held_by(three, "n1") == N - 1000
        for consistency in ("quorum", "fast"):
            with open_at(three, "n1", consistency=consistency) as other:
                hit = other.dataset().lookup(some_ids())
                assert (hit.found == ~np.isin(np.arange(N), np.arange(1000, 2000))).all()
                assert (hit.locations["volume"][:1000] == 2).all()
                assert (hit.locations["offset"][2000:] == np.arange(2000, N)).all()
        assert cluster.repair().rows == 0
