"""The contract suite against a cluster: whole, while a node dies and returns, while another joins."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvmeta
from kvmeta.remote import RemoteStore
from kvmeta_server.cluster import joining, membership, moves
from kvmeta_server.cluster.cluster_map import ClusterMap
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


class TestClusterWhileANodeDiesAndReturns(StoreContract):
    """One of the three ends after each test's first call, without a word, and is back after the third."""

    loads_whole = False

    @pytest.fixture
    def store(self, tmp_path: Path, etcd: DevEtcd, monkeypatch: pytest.MonkeyPatch) -> Iterator[kvmeta.Store]:
        for module in (joining, membership):  # who returns waits for the lease of its last life to end
            monkeypatch.setattr(module, "LEASE_S", 2)
        with local_cluster(tmp_path, etcd, 3, OPTIONS, limits__batch_rows_max=256) as cluster:
            target = f"{cluster.target},{cluster.nodes['n2'].address}"
            with kvmeta.open(target, options=kvmeta.ClientOptions(lookup_rows=100)) as store:
                assert isinstance(store, RemoteStore)
                run, calls = store.run, itertools.count(1)

                def between(*arguments: Any, **named: Any) -> Any:
                    done, number = run(*arguments, **named), next(calls)
                    if number == 1:
                        cluster.kill("n3")  # nobody knows it yet
                    elif number == 3:
                        cluster.stop("n3")
                        cluster.start("n3")
                    return done

                monkeypatch.setattr(store, "run", between)
                yield store


class TestClusterWhileANodeJoins(StoreContract):
    """A fourth node joins; partitions move to it, one after the other, through the whole of each test."""

    loads_whole = False

    @pytest.fixture
    def store(self, tmp_path: Path, etcd: DevEtcd, monkeypatch: pytest.MonkeyPatch) -> Iterator[kvmeta.Store]:
        ended = threading.Event()
        copy_chunk = moves.Moves._copy_chunk

        async def slowly(self: moves.Moves, held: ClusterMap, partitions: NDArray[np.int64]) -> None:
            last = np.flatnonzero(held.incoming(self._replica.slot))[-1]
            while int(partitions[0]) == last and not ended.is_set():  # the move outlasts the test
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await copy_chunk(self, held, partitions)

        with local_cluster(tmp_path, etcd, 3, OPTIONS, limits__batch_rows_max=256) as cluster:
            options = kvmeta.ClientOptions(lookup_rows=100)
            with kvmeta.open(cluster.target, options=options) as store:
                monkeypatch.setattr(moves, "CHUNK", 1)
                monkeypatch.setattr(moves.Moves, "_copy_chunk", slowly)
                newcomer = cluster.start("n4").node.membership
                assert newcomer.current.moving.any()
                yield store
                assert newcomer.current.moving.any()
                ended.set()
                cluster.settle()
