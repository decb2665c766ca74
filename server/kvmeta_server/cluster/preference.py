"""Preference: whom a node asks first, of each partition of a map.

It changes with the map and with who is likely to answer, both seldom, so it is made once for each of them and
not for each batch.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.placement import NOBODY


class Preference:
    """Whom the node `slot` asks while `unlikely` nodes will probably not answer."""

    def __init__(self, cluster_map: ClusterMap, slot: int, unlikely: frozenset[int]) -> None:
        self.map = cluster_map
        self.unlikely = unlikely
        self._slot = slot

    @cached_property
    def readers(self) -> NDArray[np.uint16]:
        """Return u2[P, R]: each partition's readers, this node first, then who will probably answer.

        Otherwise in the map's order, which spreads the load; while a partition is copied, those first that
        stay: what they answer need not be brought to targets.
        """
        readers = self.map.readers
        return self._ordered(np.tile(np.arange(readers.shape[1]), (len(readers), 1)))

    @cached_property
    def neighbours(self) -> NDArray[np.uint16]:
        """Return u2[P, R]: the same, otherwise by slot, so that neighbouring partitions have one order."""
        return self._ordered(self.map.readers.astype(np.int64))

    @cached_property
    def runs(self) -> NDArray[np.int64]:
        """Return i8[P]: up to which partition, from each on, the same nodes make a read quorum."""
        ranks = np.arange(self.neighbours.shape[1])
        asked = np.where(ranks < self.map.read_quorum[:, None], self.neighbours, NOBODY)
        last = np.append((asked[1:] != asked[:-1]).any(axis=1), True)
        ends: NDArray[np.int64] = np.flatnonzero(last)[np.cumsum(last) - last]
        return ends

    def _ordered(self, cost: NDArray[np.int64]) -> NDArray[np.uint16]:
        readers = self.map.readers
        cost[readers == self._slot] = -1
        cost[self.map.leaving] += 1000
        cost[np.isin(readers, list(self.unlikely))] += 100_000
        cost[readers == NOBODY] = 1_000_000
        return np.take_along_axis(readers, np.argsort(cost, axis=1, kind="stable"), axis=1)

    @cached_property
    def deciders(self) -> NDArray[np.uint16]:
        """Return u2[P]: the first owner of each partition that will probably answer, else the first."""
        owners = self.map.owners
        likely = (owners != NOBODY) & ~np.isin(owners, list(self.unlikely))
        first = np.where(likely.any(axis=1), likely.argmax(axis=1), 0)
        return np.take_along_axis(owners, first[:, None], axis=1)[:, 0]
