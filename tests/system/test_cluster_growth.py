"""Clusters that grow and shrink, with everything in them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta.engine.kernels import hashing
from kvmeta.errors import (
    InputError,
)
from kvmeta_server.cluster import moves
from kvmeta_server.dev import DevEtcd
from tests.cluster import LocalCluster, etcd, local_cluster
from tests.system.clusters import N, held_by, never, open_at, places, some_ids, three, until

pytestmark = pytest.mark.system
__all__ = ["etcd", "three"]  # fixtures


def test_a_cluster_grows_and_shrinks_with_everything_in_it(three: LocalCluster) -> None:
    with open_at(three, "n1") as store, kvmeta.operators.open(three.target) as cluster:
        ds = store.dataset()
        ds.put(some_ids(), places())
        ds.delete(some_ids(500))
        for name in ("n4", "n5"):
            three.start(name)
            three.settle()
            assert ds.lookup(some_ids()).found.sum() == N - 500
        owned = [member.owned for member in cluster.status().members]
        assert sum(owned) == 16 * 3
        assert min(owned) > 0
        until(lambda: not any(member.leftover for member in cluster.status().members), "dropping")
        for name in ("n2", "n4"):
            cluster.drain(name)
            gone = three.nodes.pop(name)
            three.settle()
            three.run(gone.stop())
        hit = ds.lookup(some_ids())
        assert hit.found.sum() == N - 500
        assert (hit.locations["offset"][500:] == np.arange(500, N)).all()
        assert len(np.concatenate([page.ids for page in ds.scan()])) == N - 500
        assert {member.name for member in cluster.status().members} == {"n1", "n3", "n5"}


def test_a_node_drops_moved_partitions_and_may_own_them_again(tmp_path: Path, etcd: DevEtcd) -> None:
    with (
        local_cluster(tmp_path, etcd, 1, replicas=1, write_quorum=1) as cluster,
        open_at(cluster, "n1") as store,
    ):
        store.dataset().put(some_ids(), places())
        cluster.start("n2")
        cluster.settle()
        until(lambda: held_by(cluster, "n1") + held_by(cluster, "n2") == N, "dropping")
        assert held_by(cluster, "n2") > N / 4
        store.dataset().delete(some_ids(N // 2))
        with kvmeta.operators.open(cluster.target) as operator:
            operator.drain("n2", force=True)
        gone = cluster.nodes.pop("n2")
        cluster.settle()
        cluster.run(gone.stop())
        assert store.dataset().lookup(some_ids()).found.sum() == N - N // 2


def test_removing_a_dead_node_copies_its_share_to_others(three: LocalCluster) -> None:
    three.start("n4")
    three.settle()
    with open_at(three, "n1") as store, kvmeta.operators.open(three.target) as cluster:
        store.dataset().put(some_ids(), places())
        dead = three.nodes.pop("n3")
        three.run(dead.stop())
        until(lambda: not three.nodes["n1"].node.peers.likely(2), "its absence")
        cluster.remove("n3")
        three.settle()
        assert store.dataset().lookup(some_ids()).found.all()
        assert all(held_by(three, name) == N for name in three.nodes)
        with pytest.raises(InputError, match="was taken out"):
            three.run(dead.start())


def test_a_new_node_at_a_removed_nodes_address_answers_only_for_itself(
    three: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one holds nothing yet: its answers as the old one would make a quorum that misses entries."""
    apply_at(three, "n2", "n3")
    dead = three.nodes["n3"]
    with monkeypatch.context() as patched, open_at(three, "n1") as store:
        patched.setattr(moves.Moves, "_copy_chunk", never)
        remove_dead(three, "n3")
        three.nodes["n4"] = dead  # its address
        three.start("n4")
        until(lambda: three.nodes["n1"].node.peers.likely(3), "its successor")
        assert store.dataset().lookup(some_ids()).found.all()
    three.settle()
    with open_at(three, "n1") as store:
        assert store.dataset().lookup(some_ids()).found.all()
    three.run(dead.stop())


def test_the_owners_left_after_removals_hold_every_acknowledged_entry(three: LocalCluster) -> None:
    """Of two owners one is read; what was acknowledged by the two others of three must be there by then."""
    apply_at(three, "n2", "n3")
    dead = three.nodes["n3"]
    remove_dead(three, "n3")
    three.settle()
    with open_at(three, "n1") as store:
        assert store.dataset().lookup(some_ids()).found.all()
    three.run(dead.stop())


def apply_at(cluster: LocalCluster, *names: str) -> None:
    """Put the test's entries at some replicas: with two of three they could have been acknowledged."""
    rows = np.zeros((N, 6), np.uint64)
    mixed = np.empty((N, 2), np.uint64)
    engine = cluster.nodes["n1"].local.engine
    hashing.mix(some_ids().view(np.uint64).reshape(-1, 2), engine.keys, mixed)
    rows[:, :2], rows[:, 2] = mixed, engine.clock.stamp()
    for name in names:
        cluster.nodes[name].node.replica.apply("default", 0, rows)


def remove_dead(cluster: LocalCluster, name: str) -> None:
    """Kill a node and take it out."""
    slot = cluster.nodes[name].node.slot
    cluster.kill(name)
    del cluster.nodes[name]
    until(lambda: not cluster.nodes["n1"].node.peers.likely(slot), "its absence")
    with kvmeta.operators.open(cluster.target) as operator:
        operator.remove(name)


def test_a_move_to_a_dead_node_waits_until_the_node_is_removed(
    three: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_at(three, "n1") as store, kvmeta.operators.open(three.target) as cluster:
        ds = store.dataset()
        ds.put(some_ids(), places())
        monkeypatch.setattr(moves.Moves, "_copy", never)
        three.start("n4")
        assert cluster.status().moving
        three.kill("n4")
        ds.put(some_ids(), places(volume=3))
        assert (ds.lookup(some_ids()).locations["volume"] == 3).all()
        time.sleep(0.5)
        assert cluster.status().moving
        gone = three.nodes.pop("n4")
        until(lambda: not three.nodes["n1"].node.peers.likely(3), "its absence")
        cluster.remove("n4")
        three.settle()
        assert (ds.lookup(some_ids()).locations["volume"] == 3).all()
        three.run(gone.stop())
