"""Anti-entropy: replicas compare digests up to a cut, exchange what differs, and then may drop tombstones.

    1  up to where the owners agreed: which tombstones no longer count
    2  digests up to the cut, every owner promising first to take no older row that it does not hold:
       else a late hint would bring back what a purged tombstone had deleted
    3  where a bucket differs: the rows of all owners, merged, sent to those that lack them (they take these)
    4  digests again; all equal: they agree up to the cut, and all are told

The first owner of a partition does it, for partitions that do not move and whose owners all answer.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import VERSION
from kvmeta.version import MS_SHIFT, TOMBSTONE, HybridClock
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.rows import BUCKETS, Bound, aligned, among, merged
from kvmeta_server.cluster.seams import Maps, PeerError, Peers

GROUP = 64
"""Partitions compared in one call."""
PAGE_ROWS = 65_536

Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]


@dataclass
class Report:
    """What a comparison found: partitions compared, rows sent, partitions passed over for a missing owner."""

    partitions: int = 0
    rows: int = 0
    skipped: int = 0


class AntiEntropy:
    """Compares the partitions of which this node is the first owner."""

    def __init__(
        self,
        slot: int,
        maps: Maps,
        peers: Peers,
        clock: HybridClock,
        expired: Callable[[str], int],
        grace_s: float,
        *,
        rows_s_max: float = math.inf,
        may_go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._slot = slot
        self._maps = maps
        self._peers = peers
        self._clock = clock
        self._expired = expired
        self._grace_ms = round(grace_s * 1000)
        self._rows_s_max = rows_s_max
        self._may_go_on = may_go_on  # raises where this node may not compare any more
        self._lock = asyncio.Lock()

    async def compare(self, dataset: str, rest: float = 0.0) -> Report:
        """Compare a dataset's partitions; return what came of it. What `may_go_on` raises ends it.

        After each group of them, rest for so many times as long as it took.
        """
        loop = asyncio.get_running_loop()
        report = Report()
        cut = max(0, self._clock.stamp() - (self._grace_ms << MS_SHIFT))
        cluster_map = self._maps.current
        moving = (cluster_map.owners[:, 0] == self._slot) & cluster_map.moving
        report.skipped += int(moving.sum())
        async with self._lock:
            for owners, partitions in self._groups(cluster_map):
                self._may_go_on()
                if not all(self._peers.likely(owner) for owner in owners):
                    report.skipped += len(partitions)
                    continue
                started = loop.time()
                try:
                    report.rows += await self._compare(dataset, owners, partitions, cut, cluster_map.epoch)
                    report.partitions += len(partitions)
                except PeerError:
                    report.skipped += len(partitions)
                await asyncio.sleep(rest * (loop.time() - started))
        return report

    def _groups(self, cluster_map: ClusterMap) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """Yield partitions of the same owners, this node the first of them."""
        mine = np.flatnonzero((cluster_map.owners[:, 0] == self._slot) & ~cluster_map.moving)
        by_owners: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for partition in mine.tolist():
            owners = cluster_map.owners[partition]
            by_owners[tuple(owners[owners != NOBODY].tolist())].append(partition)
        for owners, partitions in by_owners.items():
            for start in range(0, len(partitions), GROUP):
                yield owners, partitions[start : start + GROUP]

    async def _compare(
        self, dataset: str, owners: tuple[int, ...], partitions: list[int], cut: int, epoch: int
    ) -> int:
        expired = self._expired(dataset)
        nothing = np.zeros(len(partitions), np.uint64)
        known = await self._digests(dataset, owners, partitions, 0, nothing, expired, promise=False)
        purged = np.max([told for _, told in known], axis=0)
        sent = 0
        equal = np.zeros(len(partitions), np.bool_)
        for last in (False, True):
            digests = await self._digests(dataset, owners, partitions, cut, purged, expired, promise=True)
            differs = np.zeros((len(partitions), BUCKETS), np.bool_)
            for own, _ in digests[1:]:
                differs |= own != digests[0][0]
            equal[:] = ~differs.any(axis=1)
            if equal.all() or last:
                break
            for i in np.flatnonzero(~equal).tolist():
                sent += await self._exchange(
                    dataset, owners, partitions[i], differs[i], cut, int(purged[i]), expired, epoch
                )
        agreed = [partition for partition, same in zip(partitions, equal.tolist(), strict=True) if same]
        if agreed and (self._maps.current.changed[agreed] <= np.uint64(epoch)).all():
            await asyncio.gather(*(self._peers.agree(owner, dataset, agreed, cut) for owner in owners))
        return sent

    async def _digests(
        self,
        dataset: str,
        owners: tuple[int, ...],
        partitions: list[int],
        cut: int,
        purged: Words,
        expired: int,
        *,
        promise: bool,
    ) -> list[tuple[Words, Words]]:
        def ask(owner: int) -> Awaitable[tuple[Words, Words]]:
            return self._peers.digests(owner, dataset, partitions, cut, purged, expired, promise=promise)

        told = await asyncio.gather(*(ask(owner) for owner in owners[1:]))
        # This node last: where its clock is far ahead the others refuse, and it has promised nothing either.
        return [await ask(owners[0]), *told]

    async def _exchange(
        self,
        dataset: str,
        owners: tuple[int, ...],
        partition: int,
        differs: NDArray[np.bool_],
        cut: int,
        purged: int,
        expired: int,
        epoch: int,
    ) -> int:
        """Send every owner what it lacks of the buckets that differ; return the rows sent.

        PeerError where one was an owner under the map of `epoch` and is none now: what is left over there
        may be what its successors have deleted and purged.
        """
        cluster_map = self._maps.current
        shift = cluster_map.shift - (BUCKETS.bit_length() - 1)
        first, _ = cluster_map.stretch(partition)
        sent, loop = 0, asyncio.get_running_loop()
        for bucket in np.flatnonzero(differs).tolist():
            start = first + (bucket << shift)
            end = start + (1 << shift) - 1
            while start <= end:
                began = loop.time()
                pages = await asyncio.gather(
                    *(self._peers.rows(owner, dataset, epoch, start, end, PAGE_ROWS) for owner in owners)
                )
                each, until = aligned(pages)
                everything = merged(each)
                counts = everything[:, VERSION] <= np.uint64(cut)
                counts &= everything[:, VERSION] >= np.uint64(expired)
                tombstones = everything[:, VERSION] & np.uint64(TOMBSTONE) != 0
                counts &= ~(tombstones & (everything[:, VERSION] <= np.uint64(purged)))
                for owner, own in zip(owners, each, strict=True):
                    lacking = everything[counts & ~among(everything, own)]
                    if len(lacking):
                        await self._peers.apply(owner, dataset, 0, lacking, Bound.NONE)
                        sent += len(lacking)
                start = until + 1
                pause = len(everything) / self._rows_s_max - (loop.time() - began)
                if pause > 0:
                    await asyncio.sleep(pause)
        return sent
