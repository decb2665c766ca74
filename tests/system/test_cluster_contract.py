"""The contract suite against a cluster of three nodes: whole, while one dies, while another joins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kvmeta
from kvmeta_server.dev import DevEtcd
from tests.cluster import etcd, local_cluster
from tests.contract.test_contract import SMALL, StoreContract

__all__ = ["etcd"]

pytestmark = pytest.mark.system

OPTIONS = replace(SMALL, keep_tombstones=True)


class TestCluster(StoreContract):
    """Three nodes that each own everything."""

    loads_whole = False

    @pytest.fixture
    def store(self, tmp_path: Path, etcd: DevEtcd) -> Iterator[kvmeta.Store]:
        with local_cluster(tmp_path, etcd, 3, OPTIONS, limits__batch_rows_max=256) as cluster:
            options = kvmeta.ClientOptions(lookup_rows=100)
            with kvmeta.open(cluster.target, options=options) as store:
                yield store


class TestClusterWhileANodeDies(StoreContract):
    """One of the three ends as each test begins, without a word."""

    loads_whole = False

    @pytest.fixture
    def store(self, tmp_path: Path, etcd: DevEtcd) -> Iterator[kvmeta.Store]:
        with local_cluster(tmp_path, etcd, 3, OPTIONS, limits__batch_rows_max=256) as cluster:
            options = kvmeta.ClientOptions(lookup_rows=100)
            with kvmeta.open(f"{cluster.target},{cluster.nodes['n2'].address}", options=options) as store:
                store.dataset()
                cluster.kill("n3")  # nobody knows it yet
                yield store


class TestClusterWhileANodeJoins(StoreContract):
    """A fourth node joins amid each test, so partitions move."""

    loads_whole = False

    @pytest.fixture
    def store(self, tmp_path: Path, etcd: DevEtcd) -> Iterator[kvmeta.Store]:
        with local_cluster(tmp_path, etcd, 3, OPTIONS, limits__batch_rows_max=256) as cluster:
            options = kvmeta.ClientOptions(lookup_rows=100)
            with kvmeta.open(cluster.target, options=options) as store:
                timer = threading.Timer(0.05, cluster.start, ("n4",))
                timer.start()
                yield store
                timer.join()
