"""Replicas in this process without gRPC or etcd: real engines, and peers that can be made to fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from kvmeta.errors import KvmetaError
from kvmeta.version import TOMBSTONE
from kvmeta_server.cluster.cluster_map import ClusterMap, Member, found
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.rows import Applied, Bound, Fetched, Page
from kvmeta_server.cluster.seams import PeerError

PARTITIONS = 16
T = TypeVar("T")


class Maps:
    """The map that everybody has."""

    def __init__(self, current: ClusterMap) -> None:
        self.current = current

    async def newer_than(self, epoch: int, timeout_s: float) -> None:
        """Never wait: nobody changes it meanwhile."""
        await asyncio.sleep(0)


class Hints:
    """Hints that are only counted."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}

    def add(self, slot: int, dataset: str, rows: np.ndarray) -> None:
        """Count rows."""
        self.rows[slot] = self.rows.get(slot, 0) + len(rows)


class Replicas:
    """Some nodes, the first of which coordinates. `down` answer nothing; `calls` are counted."""

    def __init__(self, path: Path, count: int = 3, *, partitions: int = PARTITIONS, **named: Any) -> None:
        held = found("test", bytes(16), Member(0, "n0", "n0:1"), partitions=partitions, **named)
        for number in range(1, count):
            joining = held.joined(Member(0, f"n{number}", f"n{number}:1"))
            held = joining.switched(range(partitions)).finished(range(partitions))
        self.loop = asyncio.new_event_loop()
        self.maps = Maps(held)
        self._path = path
        self.stores: list[EmbeddedStore] = []
        self.replicas: dict[int, Replica] = {}
        for slot in range(count):
            self._open(slot)
        self.down: set[int] = set()
        self.calls: list[str] = []
        self.hints = Hints()
        self.coordinator = Coordinator(
            0, self.maps, self, self.stores[0].engine.clock, self.hints, sleep=lambda _: asyncio.sleep(0)
        )

    def _open(self, slot: int) -> None:
        store = EmbeddedStore(self._path / str(slot), options=EngineOptions(keep_tombstones=True))
        store.engine.clock.be(slot, 0, lambda stamp: stamp + (1 << 50))
        state = NodeState(FileDisk(store.engine.path / "node"))
        self.stores.insert(slot, store)
        self.replicas[slot] = Replica(store.engine, state, slot, self.maps.current)

    def reopen(self, slot: int) -> None:
        """Close a node's store and open it again."""
        self.stores.pop(slot).close()
        self._open(slot)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns."""
        return self.loop.run_until_complete(work)

    def likely(self, slot: int) -> bool:
        """Return whether a node answers."""
        return slot not in self.down

    async def remembered(self, slot: int, pages_from: int) -> Any:
        """Remember nothing."""
        raise PeerError("remembers nothing")

    async def tell(self, slot: int, tables: bytes) -> int:
        """Know of no tables."""
        return 0

    def long_gone(self, slot: int) -> bool:
        """Return whether nobody waits for a node: these may come back at any time."""
        return False

    def _asked(self, slot: int, call: str) -> Replica:
        self.calls.append(call)
        if slot in self.down:
            raise PeerError(f"node {slot} is down")
        return self.replicas[slot]

    async def apply(
        self, slot: int, dataset: str, epoch: int, rows: np.ndarray, bound: Bound = Bound.PROMISED
    ) -> Applied:
        """Let a node merge rows."""
        await asyncio.sleep(0)
        with _as_peer_errors():
            return self._asked(slot, "apply").apply(dataset, epoch, rows, bound)

    async def fetch(
        self, slot: int, dataset: str, epoch: int, mixed: np.ndarray, *, versions_only: bool = False
    ) -> Fetched:
        """Return what a node holds."""
        await asyncio.sleep(0)
        replica = self._asked(slot, "versions" if versions_only else "fetch")
        return replica.fetch(dataset, epoch, mixed, versions_only=versions_only)

    async def rows(self, slot: int, dataset: str, epoch: int, first: int, last: int, page_rows: int) -> Page:
        """Return a page of what a node holds."""
        with _as_peer_errors():
            return self._asked(slot, "rows").rows(dataset, epoch, first, last, page_rows)

    async def digests(
        self, slot: int, dataset: str, partitions: Iterable[int], cut_at: int, purged: np.ndarray,
        expired: int, *, promise: bool,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return a node's digests."""
        asked = list(partitions)
        with _as_peer_errors():
            replica = self._asked(slot, "digests")
            return replica.digests(dataset, asked, cut_at, purged, expired, promise=promise)

    async def agree(self, slot: int, dataset: str, partitions: Iterable[int], version: int) -> None:
        """Tell a node that all owners agreed."""
        self._asked(slot, "agree").agree(dataset, partitions, version)

    async def decide(
        self, slot: int, dataset: str, epoch: int, operation: str, rows: np.ndarray, expired: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Let the one coordinator decide for all."""
        self._asked(slot, "decide")
        return await self.coordinator.decide_here(dataset, epoch, operation, rows, expired)

    def adopt(self, cluster_map: ClusterMap, *slots: int) -> None:
        """Give some replicas, by default all, a newer map."""
        for slot in slots or self.replicas:
            self.replicas[slot].adopt(cluster_map)

    def set_clock(self, slot: int, ahead_s: int) -> None:
        """Set a node's clock so far ahead."""
        clock = self.stores[slot].engine.clock
        clock._unix_ms = lambda: time.time_ns() // 1_000_000 + 1000 * ahead_s

    def holding(self, rows: np.ndarray) -> list[int]:
        """Return how many of `rows` each node holds, with their versions where they have some."""
        out = []
        for replica in self.replicas.values():
            held = replica.tree("default").held(np.ascontiguousarray(rows[:, :2]))
            same = (held.versions != 0) & (held.locations == rows[:, 3:]).all(axis=1)
            out.append(int((same & ((rows[:, 2] == 0) | (held.versions == rows[:, 2]))).sum()))
        return out

    def close(self) -> None:
        """Close all stores."""
        self.loop.close()
        for store in self.stores:
            store.close()


@contextmanager
def _as_peer_errors() -> Iterator[None]:
    try:
        yield
    except KvmetaError as error:
        raise PeerError(str(error)) from error


async def nothing() -> None:
    """Do nothing: all datasets are here."""


def agree(replica: Replica, partitions: Iterable[int], version: int) -> None:
    """Let a replica agree on partitions as if it had just compared them up to a version."""
    asked = list(partitions)
    replica.state.ranges("default", replica.map.partitions).compare(np.array(asked), version)
    replica.agree("default", asked, version)


def rows_of(n: int, value: int = 1, seed: int = 0) -> np.ndarray:
    """Return rows of random mixed IDs, without versions."""
    out = np.zeros((n, 6), np.uint64)
    out[:, :2] = np.random.default_rng(seed).integers(0, 1 << 64, (n, 2), np.uint64)
    out[:, 3] = value
    return out


def put(replicas: Replicas, rows: np.ndarray, *slots: int, delete: bool = False) -> np.ndarray:
    """Have some nodes take rows, stamped now; return them."""
    rows[:, 2] = replicas.stores[0].engine.clock.stamp() | (TOMBSTONE if delete else 0)
    for slot in slots:
        replicas.replicas[slot].apply("default", 0, rows)
    return rows
