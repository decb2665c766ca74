"""Clients of a cluster that know nothing of its map, on real nodes over a real etcd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta_server.dev import DevEtcd
from tests.cluster import etcd, local_cluster
from tests.system.clusters import open_at, places, some_ids

__all__ = ["etcd"]

pytestmark = pytest.mark.system


def test_a_client_without_a_map_is_served_by_any_node(tmp_path: Path, etcd: DevEtcd) -> None:
    """Of four nodes none owns everything: each coordinates for the others."""
    with local_cluster(tmp_path, etcd, 4) as cluster:
        for number, name in enumerate(cluster.nodes):
            with open_at(cluster, name, lookup_rows=700) as store:
                router = store.connection.router  # type: ignore[attr-defined]
                router.routes = False
                every_operation(store, some_ids(2000, 10_000 * number), number + 1)
                assert router.route is None
        with open_at(cluster) as store:
            assert sum(map(len, store.dataset().scan())) == 4 * 1900
            assert [volume.name for volume in store.volumes.list()] == ["1", "2", "3", "4"]


def every_operation(store: kvmeta.Store, ids: np.ndarray, number: int) -> None:
    """Do all there is to some new IDs, and leave the last 1,900 of them."""
    assert store.volumes.add(f"s3://bucket/{number}", name=str(number)) == number
    store.create_dataset(f"named-{number}").put(ids[:10], places(10))
    assert store.dataset(f"named-{number}").get(ids[3:4]) == kvmeta.Location(1, 0, 3, 0, 0)
    ds = store.dataset()
    assert not ds.lookup(ids).found.any()
    ds.put(ids[:1000], places(1000))
    assert (ds.insert(ids[:1500], places(1500, volume=2)).inserted == (np.arange(1500) >= 1000)).all()
    assert ds.load([(ids[1500:], places(500, volume=3))]) == 500
    seen = ds.lookup(ids)
    assert (seen.locations["volume"] == np.repeat([1, 2, 3], [1000, 500, 500])).all()
    assert ds.relocate(ids[:1500], places(1500, volume=4), seen.versions[:1500]).relocated.all()
    assert not ds.relocate(ids[:10], places(10), seen.versions[:10]).relocated.any()
    ds.delete(ids[:100])
    hit = ds.lookup(ids)
    assert (hit.found == (np.arange(2000) >= 100)).all()
    pages = list(ds.scan(page_rows=300))
    scanned = np.concatenate([page.ids for page in pages])
    assert len(np.unique(scanned)) == len(scanned) == 1900 * number
    mine = np.isin(scanned, ids)
    order = np.argsort(scanned[mine])
    held = np.concatenate([page.versions for page in pages])[mine][order]
    assert (held == hit.versions[100:][np.argsort(ids[100:])]).all()
    sharded = [page.ids for i in range(3) for page in ds.scan(shard=(i, 3))]
    assert (np.sort(np.concatenate(sharded)) == np.sort(scanned)).all()
