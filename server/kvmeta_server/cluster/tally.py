"""Tallies: what a write's or a read's answers amount to, row by row. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvmeta_server.cluster.cluster_map import COPYING, ClusterMap
from kvmeta_server.cluster.rows import Bound, Mask, Words


class Tally:
    """The answers to rows spread over their owners and targets; `bound`: see `Replica.apply`."""

    def __init__(self, cluster_map: ClusterMap, partitions: NDArray[np.int64], bound: Bound) -> None:
        self.bound = bound
        owners, targets = cluster_map.write_quorums
        self.need_owners, self.need_targets = owners[partitions], targets[partitions]
        self.owners = np.zeros(len(partitions), np.int64)
        self.targets = np.zeros(len(partitions), np.int64)
        self.newer_owners = np.zeros(len(partitions), np.int64)
        self.newer_targets = np.zeros(len(partitions), np.int64)
        self.stale = np.zeros(len(partitions), np.bool_)
        self.fenced = np.zeros(len(partitions), np.bool_)
        self.may_be_held = np.zeros(len(partitions), np.bool_)
        """Which rows a replica may hold: it took them, or did not say."""
        self.newest = 0
        self.reason = ""

    @property
    def enough(self) -> Mask:
        """Return which rows enough owners and targets hold."""
        enough: Mask = (self.owners >= self.need_owners) & (self.targets >= self.need_targets)
        return enough

    @property
    def settled(self) -> Mask:
        """Return which rows, or something newer in their stead, enough owners and targets hold."""
        owners, targets = self.owners + self.newer_owners, self.targets + self.newer_targets
        settled: Mask = (owners >= self.need_owners) & (targets >= self.need_targets)
        return settled


class Unsettled:
    """Which answers of a read a move could lose.

    While a partition is copied, W of its targets must have what its owners answer, as they must have a write.
    """

    def __init__(self, cluster_map: ClusterMap, partitions: NDArray[np.int64]) -> None:
        self._copying = cluster_map.phase[partitions] == COPYING
        self._any = bool(self._copying.any())
        if self._any:
            self._targets = cluster_map.targets[partitions]
            self._need = cluster_map.write_quorums[1][partitions]
            self._held = np.zeros(len(partitions), np.int64)

    def note(self, slot: int, at: NDArray[np.int64], newer: Mask, same: Mask) -> None:
        """Note that a node holds newer versions than the others asked so far, or the same."""
        if self._any:
            is_target = (self._targets[at] == slot).any(axis=1)
            self._held[at] = np.where(newer, is_target, self._held[at] + (same & is_target))

    def of(self, versions: Words) -> Mask:
        """Return which of the versions read are not known to be held by enough targets."""
        lost: Mask = self._copying
        return lost & (versions != 0) & (self._held < self._need) if self._any else lost
