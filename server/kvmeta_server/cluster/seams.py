"""What the cluster's logic is given by the world: peers, maps, hints. A simulator gives it others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import UnavailableError
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.replica import Applied, Fetched, Page

Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]


class PeerError(UnavailableError):
    """A peer did not do what it was asked: it is gone, too slow, or refused. `begun`: it may have begun."""

    begun = True


class NotReachedError(PeerError):
    """A peer that was never reached: nothing has begun."""

    begun = False


class Peers(Protocol):
    """The replicas of all nodes by slot, one's own among them. Raises PeerError."""

    async def apply(
        self, slot: int, dataset: str, epoch: int, rows: Rows, *, repair: bool = False
    ) -> Applied:
        """As of `Replica.apply`."""

    async def fetch(
        self, slot: int, dataset: str, epoch: int, mixed: Words, *, versions_only: bool = False
    ) -> Fetched:
        """As of `Replica.fetch`."""

    async def rows(self, slot: int, dataset: str, epoch: int, first: int, last: int, page_rows: int) -> Page:
        """As of `Replica.rows`."""

    async def digests(
        self,
        slot: int,
        dataset: str,
        partitions: Iterable[int],
        cut_at: int,
        purged: Words,
        expired: int,
        *,
        promise: bool,
    ) -> tuple[Words, Words]:
        """As of `Replica.digests`."""

    async def repaired(self, slot: int, dataset: str, partitions: Iterable[int], version: int) -> None:
        """As of `Replica.repaired`."""

    async def decide(
        self, slot: int, dataset: str, epoch: int, operation: str, rows: Rows
    ) -> tuple[NDArray[np.uint8], Rows]:
        """As of `Coordinator.decide_here`."""

    def likely(self, slot: int) -> bool:
        """Return whether a peer will probably answer."""


class Maps(Protocol):
    """The cluster map as this node knows it."""

    @property
    def current(self) -> ClusterMap:
        """Return the newest map."""

    async def newer_than(self, epoch: int, timeout_s: float) -> None:
        """Return when there is a map newer than `epoch`, or after the timeout."""


class Hints(Protocol):
    """Rows that wait for nodes which did not answer."""

    def add(self, slot: int, dataset: str, rows: Rows) -> None:
        """Keep rows for a node."""
