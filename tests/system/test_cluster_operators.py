"""What operators of a cluster do and are told, on real nodes over a real etcd."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import kvmeta
import kvmeta.operators
from kvmeta.errors import InputError
from kvmeta_server.cluster import moves
from kvmeta_server.dev import DevEtcd
from tests.cluster import etcd, local_cluster
from tests.system.clusters import never, open_at, places, some_ids, until

__all__ = ["etcd"]

pytestmark = pytest.mark.system


def test_a_repair_counts_every_partition_of_every_dataset(tmp_path: Path, etcd: DevEtcd) -> None:
    with local_cluster(tmp_path, etcd, 4) as cluster:
        with open_at(cluster, "n1") as store, kvmeta.operators.open(cluster.target) as operator:
            store.create_dataset("second")
            steps: list[tuple[int, int]] = []
            done = operator.repair(progress=lambda *step: steps.append(step))
            assert done == kvmeta.operators.Repaired(partitions=32, rows=0, skipped=0, datasets=2)
            assert steps == [(step, 8) for step in range(8)]
            assert operator.repair("second") == kvmeta.operators.Repaired(16, 0, 0, 1)
            cluster.stop("n4")
            until(lambda: not cluster.nodes["n1"].node.peers.likely(3), "its absence")
            done = operator.repair()
            assert done.partitions + done.skipped == 32
            assert done.skipped == 2 * sum("n4" in owners for owners in operator.owners())
        cluster.start("n4")


def test_the_stats_of_every_node_count_the_clusters_volumes(tmp_path: Path, etcd: DevEtcd) -> None:
    with (
        local_cluster(tmp_path, etcd, 2) as cluster,
        open_at(cluster, "n1") as first,
        open_at(cluster, "n2") as second,
    ):
        first.volumes.add("s3://bucket/a.tar")
        until(lambda: second.stats().volumes == 1, "the volume")


def test_one_of_two_concurrent_drains_is_refused_and_names_the_other(
    tmp_path: Path, etcd: DevEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks another node, for another node; nothing moves before both are answered."""
    with local_cluster(tmp_path, etcd, 5) as cluster, open_at(cluster, "n1") as store:
        store.dataset().put(some_ids(), places())
        told: dict[str, object] = {}
        at_once = threading.Barrier(2)

        def drain(asked: str, node: str) -> None:
            with kvmeta.operators.open(f"kvmeta://{cluster.nodes[asked].address}") as operator:
                operator.status()
                at_once.wait(60)
                try:
                    told[node] = operator.drain(node)
                except InputError as error:
                    told[node] = str(error)

        with monkeypatch.context() as patched:
            patched.setattr(moves.Moves, "_copy_chunk", never)
            threads = [threading.Thread(target=drain, args=each) for each in (("n1", "n4"), ("n2", "n5"))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        (won,) = [node for node, answer in told.items() if isinstance(answer, kvmeta.operators.Changed)]
        (lost,) = set(told) - {won}
        assert f"node {won!r} is on its way out" in str(told[lost])
        gone = cluster.nodes.pop(won)
        cluster.settle()
        cluster.run(gone.stop())
        states = {node.name: node.state for node in cluster.nodes["n1"].node.membership.current.members}
        assert states == dict.fromkeys(cluster.nodes, "active")
        assert store.dataset().lookup(some_ids()).found.all()
