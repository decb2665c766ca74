"""What the tests of whole clusters share: three nodes, some entries, waiting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta_server.dev import DevEtcd
from tests import patience
from tests.cluster import LocalCluster, etcd, local_cluster

__all__ = ["etcd"]


N = 20_000


@pytest.fixture
def three(tmp_path: Path, etcd: DevEtcd) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path, etcd, 3) as cluster:
        yield cluster


def some_ids(n: int = N, start: int = 0) -> np.ndarray:
    return kvmeta.ids_from_ints(np.arange(start, start + n, dtype=np.uint64))


def places(n: int = N, volume: int = 1) -> np.ndarray:
    out = np.zeros(n, kvmeta.LOCATION)
    out["volume"], out["offset"] = volume, np.arange(n)
    return out


def held_by(cluster: LocalCluster, name: str) -> int:
    """Return how many of the test's entries a node's own store holds live."""
    return int(cluster.nodes[name].local.dataset().lookup(some_ids()).found.sum())


until = partial(patience.until, within_s=20.0, look_s=0.05)


def open_at(cluster: LocalCluster, *names: str, **options: object) -> kvmeta.Store:
    addresses = [cluster.nodes[name].address for name in (names or cluster.nodes)]
    return kvmeta.open("kvmeta://" + ",".join(addresses), options=kvmeta.ClientOptions(**options))  # type: ignore[arg-type]


async def never(*_: object) -> None:
    """Copy nothing."""
