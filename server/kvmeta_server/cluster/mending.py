"""Mending: what is damaged of this node's segments is brought back from the other owners, then given up here.

    look      what lookups, merges and opens have found damaged, once it is old enough to be settled
    bring     of each partition that it touches: what R - W + 1 of the *other* owners hold and this one lacks
    give up   the segment is written anew without its damaged pages; then its IDs are answered here again

An acknowledged write is at W - 1 other owners at least, so R - W + 1 of the R - 1 others have it among them.
Each step may be repeated, so a crash between them costs nothing but doing them again.

Two things that a damaged page may have held do not come from the others:

- A write that this node took and whose coordinator still counts: pages are immutable, so damage that is older
  than a call between nodes lasts holds none.
- A tombstone that the others have purged. What it hid here, in another run, would come back. Others purge
  only up to where all owners agreed, for then they held the same: so what is held here up to there, and
  of which they hold nothing, was deleted, and is marked so.
"""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine import damage
from kvmeta.engine.damage import Lost
from kvmeta.engine.kernels.layout import LOW, VERSION, WORD3
from kvmeta.engine.tree import Tree
from kvmeta.engine.window import merged_rows
from kvmeta.errors import KvmetaError, UnavailableError
from kvmeta.protocol.codes import Outcome
from kvmeta.version import TOMBSTONE
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.quorum_rows import quorum_rows
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.rows import Bound, among, merged
from kvmeta_server.cluster.seams import Events, Lane, Peers

Rows = NDArray[np.uint64]


class Mending:
    """Mends one node's damage. `damaged` counts the ranges known, `mended` those mended since the start."""

    def __init__(
        self, replica: Replica, peers: Peers, lane: Lane, log: Events, every_s: float, settled_s: float
    ) -> None:
        self._replica = replica
        self._peers = peers
        self._lane = lane
        self._log = log
        self._every_s = every_s
        self._settled_s = settled_s
        self._since: dict[tuple[str, Lost], float] = {}
        self._brought: dict[tuple[str, Lost], dict[int, int]] = {}  # by partition: as of which epoch
        self.damaged = 0
        self.mended = 0

    async def run(self) -> None:
        """Look and mend, for ever."""
        told = ""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                reason = await self.look()
            except KvmetaError as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - a fault here must not end mending for good
                self._log.fault("mending", error)
                continue
            if reason and reason != told:
                self._log.warning("damage stays", ranges=self.damaged, reason=reason)
            told = reason

    async def look(self) -> str:
        """Mend what can be mended now; return why something has to wait, if it does."""
        now = asyncio.get_running_loop().time()
        since: dict[tuple[str, Lost], float] = {}
        for dataset in self._replica.datasets():
            tree = self._replica.tree(dataset)
            if tree.runs:
                for lost in await self._lane.run(partial(self._note, tree)):
                    since[dataset, lost] = self._since.get((dataset, lost), now)
        self._since = since
        self._brought = {key: self._brought.get(key, {}) for key in since}
        self.damaged = sum(lost.ranges for _, lost in since)
        reason = ""
        for (dataset, lost), found in since.items():
            if now - found < self._settled_s:
                continue
            try:
                await self._mend(dataset, lost)
            except KvmetaError as error:
                reason = reason or str(error)
        return reason

    def _note(self, tree: Tree) -> list[Lost]:
        """Return what is lost of a tree; quarantined, so that no merge moves it meanwhile."""
        lost = damage.lost(tree)
        if lost:
            self._replica.engine.background.quarantine(tree)
        return lost

    async def _mend(self, dataset: str, lost: Lost) -> None:
        """Bring what is lost of a segment and then give it up; UnavailableError where that has to wait."""
        cluster_map, held = self._replica.holding()
        brought = self._brought[dataset, lost]
        rows = 0
        failed: UnavailableError | None = None
        for partition, stretches in _touched(cluster_map, lost).items():
            if not _behind(cluster_map, held, brought, partition):
                continue
            try:
                rows += await self._bring(cluster_map, dataset, partition, stretches)
                brought[partition] = cluster_map.epoch
            except UnavailableError as error:  # the others need not be brought again
                failed = failed or error
        if failed is not None:
            raise failed
        now, held = self._replica.holding()
        if any(_behind(now, held, brought, partition) for partition in _touched(now, lost)):
            raise UnavailableError("partitions with damage changed their owners meanwhile")
        tree, background = self._replica.tree(dataset), self._replica.engine.background
        if await self._lane.run(lambda: background.give_up(tree, lost)):
            self.mended += lost.ranges
            self.damaged -= lost.ranges
            self._log.info("mended", dataset=dataset, segment=lost.segment, ranges=lost.ranges, rows=rows)

    async def _bring(
        self, cluster_map: ClusterMap, dataset: str, partition: int, stretches: list[tuple[int, int]]
    ) -> int:
        """Take what the other owners hold of stretches of a partition and this one lacks; return the rows."""
        if cluster_map.moving[partition]:
            raise UnavailableError(f"partition {partition} has damage and is on the move")
        slots = cluster_map.owners[partition].tolist()
        others = [slot for slot in slots if slot not in (NOBODY, self._replica.slot)]
        others = [slot for slot in others if self._peers.likely(slot)]
        need = int(cluster_map.read_quorum[partition])
        if len(others) < need:
            raise UnavailableError(
                f"partition {partition}: {len(others)} other owners answer, and it takes {need} to know what "
                "was damaged here"
            )
        loop = asyncio.get_running_loop()
        agreed = await self._agreed(dataset, partition, others)
        rows = 0
        for first, last in stretches:
            started = loop.time()
            async for theirs, until in quorum_rows(
                self._peers, dataset, cluster_map.epoch, others, need, first, last
            ):
                take = partial(self._take, dataset, cluster_map.epoch, theirs, first, until, agreed)
                rows += await self._lane.run(take)
                await asyncio.sleep(loop.time() - started)  # half of the time at most
                first, started = until + 1, loop.time()
        if await self._agreed(dataset, partition, others) != agreed:  # more was purged, maybe
            raise UnavailableError(f"partition {partition}: its owners agreed on more meanwhile")
        return rows

    async def _agreed(self, dataset: str, partition: int, owners: list[int]) -> int:
        """Return up to which version tombstones may be gone at owners."""
        nothing = np.zeros(1, np.uint64)
        told = await asyncio.gather(
            *(
                self._peers.digests(slot, dataset, [partition], 0, nothing, 0, promise=False)
                for slot in owners
            )
        )
        return max(int(agreed[0]) for _, agreed in told)

    def _take(self, dataset: str, epoch: int, theirs: Rows, first: int, until: int, agreed: int) -> int:
        """Merge what is lacking of a stretch into this node's store, durably; return the rows."""
        own = merged_rows(self._replica.tree(dataset).view, first, until, lenient=True)
        rows = lacking(theirs, own, agreed)
        if len(rows):
            outcomes, _ = self._replica.apply(dataset, epoch, rows, Bound.NONE)
            if (outcomes == Outcome.FENCED).any():
                raise UnavailableError("partitions with damage changed their owners meanwhile")
        return len(rows)


def lacking(theirs: Rows, own: Rows, agreed: int) -> Rows:
    """Return what must be merged into a replica's own undamaged rows so that it answers as the others do.

    That is what they hold and it does not, and the end of what they hold nothing of and agreed on once.
    """
    everything = merged([theirs, own])
    deleted = own[~among(own, theirs, LOW + 1)]
    deleted = deleted[
        (deleted[:, VERSION] <= np.uint64(agreed)) & (deleted[:, VERSION] & np.uint64(TOMBSTONE) == 0)
    ]
    deleted[:, VERSION] |= np.uint64(TOMBSTONE)
    deleted[:, WORD3:] = 0
    return np.concatenate([everything[~among(everything, own)], deleted])


def _touched(cluster_map: ClusterMap, lost: Lost) -> dict[int, list[tuple[int, int]]]:
    """Return the stretches that are lost, by partition."""
    out: dict[int, list[tuple[int, int]]] = {}
    for first, last in lost.stretches:
        for partition in range(first >> cluster_map.shift, (last >> cluster_map.shift) + 1):
            start, end = cluster_map.stretch(partition)
            out.setdefault(partition, []).append((max(first, start), min(last, end)))
    return out


def _behind(
    cluster_map: ClusterMap, held: NDArray[np.bool_], brought: dict[int, int], partition: int
) -> bool:
    """Return whether what is lost of a partition was not brought since its last change.

    Of what this node does not own, or has yet to drop, nothing has to be: no quorum counts on it.
    """
    return bool(held[partition]) and brought.get(partition, -1) < int(cluster_map.changed[partition])
