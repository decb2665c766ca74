"""What a cluster must refuse, and what it does without what it needs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta.engine.options import EngineOptions
from kvmeta.errors import (
    InputError,
    OutcomeUnknownError,
    StoreLockedError,
    UnavailableError,
)
from kvmeta.version import join, split
from kvmeta_server.cluster import membership
from kvmeta_server.dev import DevEtcd
from tests.cluster import LocalCluster, LocalNode, etcd, local_cluster
from tests.system.clusters import open_at, places, some_ids, three, until
from tests.system.disks import needs, tmpfs

pytestmark = pytest.mark.system
__all__ = ["etcd", "three"]  # fixtures


def test_a_node_refuses_the_data_of_another_node(three: LocalCluster, tmp_path: Path) -> None:
    three.stop("n3")
    with pytest.raises(InputError, match="data of node 'n3'"):
        start_with(three, "n9", tmp_path / "n3")
    three.start("n3")


def start_with(cluster: LocalCluster, name: str, data: Path) -> None:
    node = cluster.nodes["n3"]
    settings = replace_node(node.config, name, data)
    cluster.run(LocalNode(data, settings, EngineOptions(keep_tombstones=True)).start())


def replace_node(config: object, name: str, data: Path) -> object:
    cluster = msgspec.structs.replace(config.cluster, node=name)  # type: ignore[attr-defined]
    return msgspec.structs.replace(config, cluster=cluster, data=str(data))  # type: ignore[type-var]


def test_a_node_and_a_copy_of_its_data_cannot_run_together(
    three: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmeta_server.cluster.joining.LEASE_S", 0)
    three.stop("n3")
    shutil.copytree(tmp_path / "n3", tmp_path / "copy")
    three.start("n3")
    with pytest.raises(StoreLockedError, match="up elsewhere"):
        start_with(three, "n3", tmp_path / "copy")


def test_a_node_that_lost_its_data_cannot_rejoin_under_its_name(three: LocalCluster, tmp_path: Path) -> None:
    three.stop("n3")
    shutil.rmtree(tmp_path / "n3")
    with pytest.raises(InputError, match="already, with other data"):
        three.start("n3")
    three.nodes.pop("n3")


def test_a_store_with_entries_cannot_join_a_cluster(three: LocalCluster, tmp_path: Path) -> None:
    with kvmeta.open(tmp_path / "single") as store:
        store.dataset().put(some_ids(10), places(10))
    with pytest.raises(InputError, match="holds 10 entries"):
        three.start("single")


def test_a_node_believes_nothing_of_another_cluster_with_the_same_name(tmp_path: Path, etcd: DevEtcd) -> None:
    """It goes on with what it knows, as without etcd, and says so."""
    with local_cluster(tmp_path / "a", etcd, 1) as cluster:
        cluster.stop("n1")
        other = DevEtcd(tmp_path / "etcd")
        try:
            stranger = LocalCluster(tmp_path / "b", other)
            stranger.name = cluster.name
            stranger.start("m1")
            stranger.path, stranger.nodes["n1"] = tmp_path / "a", cluster.nodes["n1"]
            node = stranger.start("n1").node
            assert "another cluster of the name" in node.membership.refusal
            assert [member.name for member in node.membership.current.members] == ["n1"]
            with open_at(stranger, "n1") as store:
                store.dataset().put(["a"], places(1))
                with pytest.raises(kvmeta.UnavailableError, match="cluster recover"):
                    store.create_dataset("new")
            assert [member.name for member in stranger.nodes["m1"].node.membership.current.members] == ["m1"]
            stranger.stop("n1")
            stranger.nodes.pop("n1")
            stranger.close()
        finally:
            other.stop()
        cluster.start("n1")


def test_a_node_whose_settings_differ_from_the_clusters_cannot_join(
    three: LocalCluster,
) -> None:
    for name, given, there in (("partitions", 64, 16), ("replicas", 2, 3), ("write_quorum", 3, 2)):
        told = f"cluster.{name}: {given} was given, and cluster .* was founded with {there}"
        with pytest.raises(InputError, match=told):
            three.start("another", **{name: given})
    three.stop("n3")
    with pytest.raises(InputError, match=r"64 was given, and cluster .* was founded with 16"):
        three.start("n3", partitions=64)
    three.start("n3", replicas=3)
    assert [node.name for node in three.nodes["n3"].node.membership.current.members] == ["n1", "n2", "n3"]


def test_a_node_cannot_start_with_data_of_another_cluster(three: LocalCluster, tmp_path: Path) -> None:
    three.stop("n3")
    name, three.name = three.name, "another"
    with pytest.raises(InputError, match="belongs to node 'n3' of cluster"):
        three.start("n3")
    three.name = name
    three.start("n3")


def test_rows_stamped_far_ahead_are_refused_with_the_time_difference(three: LocalCluster) -> None:
    ahead = three.nodes["n1"].local.engine.clock
    ahead._unix_ms = lambda: time.time_ns() // 1_000_000 + 90_000  # type: ignore[attr-defined]
    with (
        open_at(three, "n1", timeout_s=20) as store,
        pytest.raises(OutcomeUnknownError, match=r"stamped \d+ s ahead"),
    ):
        store.dataset().put(some_ids(10), places(10))
    ahead._unix_ms = lambda: time.time_ns() // 1_000_000  # type: ignore[attr-defined]


def test_a_node_that_stamped_versions_far_ahead_does_not_start(three: LocalCluster) -> None:
    three.stop("n3")
    state = three.nodes["n3"].node.state
    now = split(three.nodes["n1"].local.engine.clock.stamp())
    state.reserve(join(now._replace(unix_ms=now.unix_ms + 180_000)))
    with pytest.raises(UnavailableError, match="stamped up to"):
        three.start("n3")
    state.reserve(join(now))
    three.start("n3")


@needs("mount", "umount")
def test_a_full_disk_costs_only_that_nodes_own_acknowledgements(tmp_path: Path, etcd: DevEtcd) -> None:
    (tmp_path / "nodes").mkdir()
    with (
        tmpfs(tmp_path / "nodes" / "n3", "14m"),
        local_cluster(tmp_path / "nodes", etcd, 3) as cluster,
        open_at(cluster) as store,
    ):
        ds = store.dataset()
        ids = np.random.default_rng(1).integers(0, 256, (1_000_000, 16), np.uint8).view("V16").reshape(-1)
        for start in range(0, len(ids), 50_000):
            ds.put(ids[start : start + 50_000], places(50_000))
        until(lambda: not cluster.nodes["n3"].local.engine.may_write, "a full disk")
        assert ds.lookup(ids).found.all()
        waiting = [node.node.hints.waiting().get(2, 0) for node in cluster.nodes.values()]
        assert sum(waiting) > 0


def test_impossible_operations_on_nodes_are_refused_with_their_reason(three: LocalCluster) -> None:
    with kvmeta.operators.open(three.target) as cluster:
        with pytest.raises(InputError, match="2 nodes for 3 replicas"):
            cluster.drain("n2")
        with pytest.raises(InputError, match="answers; drain it"):
            cluster.remove("n2")
        with pytest.raises(kvmeta.NotFoundError, match="no node 'n7'"):
            cluster.drain("n7")
        with pytest.raises(InputError, match="not draining"):
            cluster.undrain("n1")
        assert cluster.rebalance().moves == 0
        first = cluster.drain("n2", force=True)
        with pytest.raises(InputError, match="on its way out"):
            cluster.drain("n3")
        assert cluster.status().epoch >= first.epoch
        gone = three.nodes.pop("n2")
        three.settle()
        three.run(gone.stop())


def test_reads_and_writes_continue_without_etcd_but_changes_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "LEASE_S", 2)
    server = DevEtcd(tmp_path / "etcd")
    with local_cluster(tmp_path, server, 3) as cluster:
        with open_at(cluster) as store, kvmeta.operators.open(cluster.target) as operator:
            ds = store.dataset()
            ds.put(some_ids(1000), places(1000))
            store.create_dataset("named").put(some_ids(10), places(10))
            server.stop()
            time.sleep(3)
            ds.put(some_ids(1000, 1000), places(1000))
            assert ds.lookup(some_ids(2000)).found.all()
            assert not operator.status().etcd
            with pytest.raises(UnavailableError, match="etcd does not answer"):
                operator.drain("n2", force=True)
            with pytest.raises(UnavailableError, match="etcd"):
                store.create_dataset("more")
            with pytest.raises(UnavailableError, match="holds no lease"):
                operator.repair()
            cluster.stop("n2")
            cluster.start("n2")  # it remembers the map, and keeps what it cannot ask about
            assert cluster.nodes["n2"].local.datasets() == ["default", "named@1"]
            assert store.dataset("named").lookup(some_ids(10)).found.all()
            assert ds.lookup(some_ids(2000)).found.all()
            server = DevEtcd(tmp_path / "etcd", port=server.port)
            until(lambda: operator.status().etcd, "etcd is back")
            store.create_dataset("more").put(some_ids(10), places(10))
        cluster.etcd = server
    server.stop()
