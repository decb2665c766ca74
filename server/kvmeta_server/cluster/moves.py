"""Moves: partitions change owners while they are read and written (docs/replication.md has the argument).

    every node     copies what it is to own: from a read quorum of the owners, merged, into runs
    the driver     one node by etcd's lease: takes each partition from step to step, by compare-and-swap
    every node     drops what it owns no more, once the owners are known to have all of it

    COPYING ── every target has copied ──> SWITCHED ── enough owners know ──> STABLE

"Enough" is as many owners as no quorum planned on the older map can do without: max(W, R - W + 1) of them. A
copy starts only when so many have persisted the map that says COPYING: what is acknowledged without the
targets was acknowledged before, and a read quorum of the owners has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import KvmetaError, NotFoundError, UnavailableError
from kvmeta.protocol.codes import Outcome
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.cluster_map import COPYING, SWITCHED, ClusterMap
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.quorum_rows import PAGE_ROWS, quorum_rows
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.rows import BUCKETS
from kvmeta_server.cluster.seams import PeerError, Peers, World

INGEST_ROWS = 1 << 20
CHUNK = 64
"""Partitions copied before they are noted as copied."""
AT_ONCE = 4
"""Partitions read at once: one alone waits for the network most of the time."""
_IDLE_S = 60.0
"""Between two looks at a map under which there is nothing to do: a newer one comes first."""

Rows = NDArray[np.uint64]


class Moves:
    """A node's part in moves."""

    def __init__(
        self,
        replica: Replica,
        state: NodeState,
        membership: Membership,
        peers: Peers,
        world: World,
        make_datasets: Callable[[], Awaitable[None]],
        step_s: float,
        rows_s_max: float,
    ) -> None:
        self._replica = replica
        self._state = state
        self._membership = membership
        self._peers = peers
        self._lane = world.background
        self._log = world.log
        self._make_datasets = make_datasets
        self._step_s = step_s
        self._rows_s_max = rows_s_max
        self._copied = state.copied(membership.current.partitions)
        self._epochs: dict[int, int] = {}  # under which maps others surely work, by slot
        self._holding = asyncio.Lock()  # what is copied is not dropped meanwhile, nor the other way round
        self.rows_copied = 0

    def copied(self, cluster_map: ClusterMap) -> list[int]:
        """Return the partitions whose copy to this node is done, as that map has them."""
        done = cluster_map.incoming(self._replica.slot) & (self._copied == cluster_map.changed)
        return np.flatnonzero(done).tolist()

    async def run(self) -> None:
        """Copy, drive and drop, for ever."""
        await asyncio.gather(*(self._repeat(work) for work in (self._copy, self._drive, self._drop)))

    async def _repeat(self, work: Callable[[ClusterMap], Awaitable[bool]]) -> None:
        """Work under the newest map; again after a step, or where `work` had nothing to do under the next."""
        told = ""
        while True:
            cluster_map = self._membership.current
            idle = False
            try:
                idle = not await work(cluster_map)
                told = ""
            except KvmetaError as error:  # a peer or etcd is away: later
                if str(error) != told:
                    told = str(error)
                    self._log.warning("moves wait", reason=told)
            except Exception as error:  # noqa: BLE001 - a fault here must not end moves for good
                self._log.fault("moves", error)
                await asyncio.sleep(1.0)
            await self._membership.newer_than(cluster_map.epoch, _IDLE_S if idle else self._step_s)

    async def _ask(self, slots: Iterable[int]) -> dict[int, peer.StateResponse]:
        """Ask other nodes how they are; who does not answer is left out."""
        asked = [slot for slot in slots if slot != self._replica.slot and self._peers.likely(slot)]
        told: dict[int, peer.StateResponse] = {}

        async def ask(slot: int) -> None:
            with suppress(PeerError):
                told[slot] = await self._peers.state(slot)
                self._epochs[slot] = told[slot].epoch

        await asyncio.gather(*(ask(slot) for slot in asked))
        return told

    def _holds_lease(self) -> bool:
        return self._membership.lease_left_s() > 0

    # Copying

    async def _copy(self, cluster_map: ClusterMap) -> bool:
        todo = cluster_map.incoming(self._replica.slot) & (self._copied != cluster_map.changed)
        if not todo.any():
            return False
        if not self._holds_lease():
            return True
        await self._drop_here(lambda now: now.incoming(self._replica.slot))  # it may be older than a purge
        await self._make_datasets()  # what is not known here would not be copied
        ready = np.flatnonzero(todo & await self._known_to_enough(cluster_map, COPYING))
        for start in range(0, len(ready), CHUNK):
            async with self._holding:
                if not self._holds_lease():
                    break
                await self._copy_chunk(cluster_map, ready[start : start + CHUNK])
        return True

    async def _copy_chunk(self, cluster_map: ClusterMap, partitions: NDArray[np.int64]) -> None:
        missing: set[int] = set()  # their owners do not answer: the others do not wait for them
        reason: PeerError | None = None
        for dataset in self._replica.datasets():
            try:
                lost, why = await self._copy_dataset(cluster_map, dataset, partitions)
            except NotFoundError:  # dropped here meanwhile
                continue
            except PeerError:
                if await self._has(dataset):
                    raise
                continue
            if lost and await self._has(dataset):
                missing |= lost
                reason = why
        now = self._membership.current
        same = partitions[now.changed[partitions] == cluster_map.changed[partitions]]
        same = same[~np.isin(same, list(missing))]
        self._copied[same] = now.changed[same]
        await self._lane.run(lambda: self._state.set_copied(self._copied))
        if reason is not None:
            self._log.warning("moves wait", reason=str(reason), partitions=len(missing))

    async def _copy_dataset(
        self, cluster_map: ClusterMap, dataset: str, partitions: NDArray[np.int64]
    ) -> tuple[set[int], PeerError | None]:
        """Copy a dataset's partitions; return those that could not be, and why."""
        missing: set[int] = set()
        reason: PeerError | None = None
        parts: list[Rows] = []
        for start in range(0, len(partitions), AT_ONCE):
            some = partitions[start : start + AT_ONCE].tolist()
            reads = (self._read(cluster_map, dataset, partition) for partition in some)
            got = await asyncio.gather(*reads, return_exceptions=True)
            for partition, rows in zip(some, got, strict=True):
                if isinstance(rows, PeerError):
                    missing.add(partition)
                    reason = rows
                elif isinstance(rows, BaseException):
                    raise rows
                else:
                    parts += rows
            if sum(map(len, parts)) >= INGEST_ROWS:
                await self._ingest(dataset, parts)
        await self._ingest(dataset, parts)
        untold = await self._take_over_ranges(cluster_map, dataset, partitions)
        if untold:
            missing.update(untold)
            reason = reason or PeerError("too few owners tell up to where they agreed")
        return missing, reason

    async def _has(self, dataset: str) -> bool:
        """Return whether the cluster still has a dataset, as far as can be told."""
        if dataset == DEFAULT_DATASET:
            return True
        with suppress(UnavailableError):
            return dataset in (await self._membership.tables_now()).by_local_name
        return True

    async def _read(self, cluster_map: ClusterMap, dataset: str, partition: int) -> list[Rows]:
        """Return a partition's rows as a read quorum of its owners has them, in order."""
        out: list[Rows] = []
        if not cluster_map.alive[partition].any():
            return out  # given up: its owners were removed by force
        need = int(cluster_map.read_quorum[partition])
        owners = [
            slot
            for slot in cluster_map.owners[partition].tolist()
            if slot != NOBODY and self._peers.likely(slot)
        ]
        if len(owners) < need:
            raise PeerError(
                f"partition {partition}: {len(owners)} owners answer, and it takes {need} to copy it"
            )
        first, last = cluster_map.stretch(partition)
        loop = asyncio.get_running_loop()
        started = loop.time()
        async for rows, _ in quorum_rows(self._peers, dataset, cluster_map.epoch, owners, need, first, last):
            if len(rows):
                out.append(rows)
                spent = loop.time() - started
                await asyncio.sleep(max(0.0, AT_ONCE * len(rows) / self._rows_s_max - spent))
            started = loop.time()
        return out

    async def _ingest(self, dataset: str, parts: list[Rows]) -> None:
        if parts:
            rows = np.concatenate(parts)  # partitions in order, each in order
            parts.clear()
            await self._lane.run(lambda: self._replica.engine.ingest(self._replica.tree(dataset), rows))
            self.rows_copied += len(rows)

    async def _take_over_ranges(
        self, cluster_map: ClusterMap, dataset: str, partitions: NDArray[np.int64]
    ) -> list[int]:
        """Take over up to where the owners agreed: their tombstones may be gone, so ours may be refused.

        Returns the partitions of which too few owners answered: an owner that did not hear of the agreement
        tells less, so one of those that were read (any read quorum) must be among those that tell.
        """
        agreed = np.zeros(len(partitions), np.uint64)
        answers = np.zeros(len(partitions), np.int64)
        owners = cluster_map.owners[partitions]
        for slot in _members(owners):
            if self._peers.likely(slot):
                mine = np.flatnonzero((owners == slot).any(axis=1))
                asked, nothing = partitions[mine].tolist(), np.zeros(len(mine), np.uint64)
                _, told = await self._peers.digests(slot, dataset, asked, 0, nothing, 0, promise=False)
                agreed[mine] = np.maximum(agreed[mine], told)
                answers[mine] += 1
        told_by = cluster_map.alive.sum(axis=1) - cluster_map.read_quorum + 1
        enough = answers >= told_by[partitions]
        untold: list[int] = partitions[~enough].tolist()
        partitions, agreed = partitions[enough], agreed[enough]
        ranges = self._state.ranges(dataset, cluster_map.partitions)
        owned = (owners[enough] == self._replica.slot).any(axis=1)

        def reset() -> None:
            kept = np.where(owned, ranges.promised[partitions], np.uint64(0))
            ranges.reset(partitions, np.maximum(agreed, kept), agreed)
            self._replica.allow_purge(dataset)

        await self._lane.run(reset)
        return untold

    # Driving

    async def _drive(self, cluster_map: ClusterMap) -> bool:
        if not cluster_map.unplaced.any():
            return False
        if not await self._membership.is_driver():
            return True
        if not cluster_map.moving.any():  # what had switched when the plan changed
            await self._step(cluster_map, lambda held: held.replanned())
            return True
        copied = np.flatnonzero((cluster_map.phase == COPYING) & await self._copied_by_all(cluster_map))
        if len(copied):
            await self._step(cluster_map, lambda held: held.switched(copied.tolist()))
            return True
        known = np.flatnonzero(await self._known_to_enough(cluster_map, SWITCHED))
        if len(known):
            await self._step(cluster_map, lambda held: held.finished(known.tolist()))
        return True

    async def _step(self, planned: ClusterMap, change: Callable[[ClusterMap], ClusterMap]) -> None:
        def unless_changed(held: ClusterMap) -> ClusterMap:
            return change(held) if held.epoch == planned.epoch else held

        await self._membership.change_map(unless_changed)
        await self._membership.newer_than(planned.epoch, 2.0)
        now = self._membership.current
        if planned.moving.any() and not now.unplaced.any():
            self._log.info("moves done", epoch=now.epoch)

    async def _copied_by_all(self, cluster_map: ClusterMap) -> NDArray[np.bool_]:
        """Return bool[P]: whether all of a partition that have to copy it have done so."""
        done = np.ones(cluster_map.partitions, np.bool_)
        copying = [node.slot for node in cluster_map.members if cluster_map.incoming(node.slot).any()]
        told = await self._ask(copying)
        for slot in copying:
            has = np.zeros(cluster_map.partitions, np.bool_)
            if slot == self._replica.slot:
                has[self.copied(cluster_map)] = True
            elif slot in told and told[slot].epoch == cluster_map.epoch:
                has[list(told[slot].copied)] = True
            done &= ~cluster_map.incoming(slot) | has
        return done

    async def _known_to_enough(self, cluster_map: ClusterMap, phase: int) -> NDArray[np.bool_]:
        """Return bool[P]: which partitions of a phase so many owners know that no older map is of use.

        Owners are asked where what they said before is not enough.
        """
        in_phase: NDArray[np.bool_] = cluster_map.phase == phase
        enough = in_phase & self._known(cluster_map)
        if (in_phase & ~enough).any():
            waiting = np.where((in_phase & ~enough)[:, None], cluster_map.owners, NOBODY)
            await self._ask(slot for slot in _members(waiting) if not self._knows(cluster_map, slot).all())
            enough = in_phase & self._known(cluster_map)
        return enough

    def _known(self, cluster_map: ClusterMap) -> NDArray[np.bool_]:
        """Return bool[P]: whether enough of the owners that are left know of a partition's newest change."""
        knows = np.zeros(cluster_map.owners.shape, np.bool_)
        for slot in _members(cluster_map.owners):
            knows |= (cluster_map.owners == slot) & self._knows(cluster_map, slot)[:, None]
        knows &= cluster_map.alive
        count = (cluster_map.owners != NOBODY).sum(axis=1)
        write = np.minimum(cluster_map.write_quorum, count)
        need = np.minimum(np.maximum(write, count - write + 1), cluster_map.alive.sum(axis=1))
        known: NDArray[np.bool_] = knows.sum(axis=1) >= need
        return known

    def _knows(self, cluster_map: ClusterMap, slot: int) -> NDArray[np.bool_]:
        """Return bool[P]: of which partitions' newest change a node is known to know."""
        epoch = self._replica.persisted if slot == self._replica.slot else self._epochs.get(slot, 0)
        known: NDArray[np.bool_] = cluster_map.changed <= np.uint64(epoch)
        return known

    # Dropping

    async def _drop(self, cluster_map: ClusterMap) -> bool:
        """Drop what is held and not owned any more, once its owners have every row of it."""
        if cluster_map.unplaced.any():
            return False  # dropping rewrites the store: once, when all has moved
        left = self._state.leftover(cluster_map.partitions)
        left &= ~cluster_map.held_by(self._replica.slot)
        if not left.any():
            return False
        partitions = np.flatnonzero(left)
        for dataset in self._replica.datasets():
            for start in range(0, len(partitions), CHUNK):
                if not self._holds_lease():
                    return True
                await self._hand_over(cluster_map, dataset, partitions[start : start + CHUNK])
        if self._holds_lease():  # only of those who own it still has anybody heard that they have it
            await self._drop_here(lambda now: left & ~now.moving & (now.changed == cluster_map.changed))
        return True

    async def _hand_over(self, cluster_map: ClusterMap, dataset: str, partitions: NDArray[np.int64]) -> None:
        """Make sure that every owner of partitions has what is here; PeerError where one does not say so.

        Where digests differ it is sent the rows, and says of each that it has it now, has something newer, or
        has promised to take nothing so old. Digests need not become equal: it is written to meanwhile.
        """
        nothing = np.zeros(len(partitions), np.uint64)
        cut = (1 << 64) - 1
        own, _ = await self._lane.run(
            lambda: self._replica.digests(dataset, partitions.tolist(), cut, nothing, 0, promise=False)
        )
        for slot in _members(cluster_map.owners[partitions]):
            mine = np.flatnonzero((cluster_map.owners[partitions] == slot).any(axis=1))
            theirs, _ = await self._peers.digests(
                slot, dataset, partitions[mine].tolist(), cut, nothing[mine], 0, promise=False
            )
            shift = cluster_map.shift - (BUCKETS.bit_length() - 1)
            for i, digests in zip(mine.tolist(), theirs, strict=True):
                for bucket in np.flatnonzero(digests != own[i]).tolist():
                    start = (int(partitions[i]) << cluster_map.shift) + (bucket << shift)
                    await self._send(slot, dataset, start, start + (1 << shift) - 1)

    async def _send(self, slot: int, dataset: str, first: int, last: int) -> None:
        while first <= last:
            page = await self._peers.rows(self._replica.slot, dataset, 0, first, last, PAGE_ROWS)
            if len(page.rows):
                outcomes, _ = await self._peers.apply(slot, dataset, 0, page.rows)
                if (outcomes == Outcome.FENCED).any():
                    raise PeerError(
                        f"node {slot} does not take what is handed over to it: it may own it no more"
                    )
            first = page.until + 1

    async def _drop_here(self, which: Callable[[ClusterMap], NDArray[np.bool_]]) -> None:
        """Drop what is left over of the partitions that `which` names of the map as it is by then."""
        async with self._holding:
            cluster_map = self._membership.current
            mask = self._state.leftover(cluster_map.partitions) & which(cluster_map)
            if not mask.any():
                return
            stretches = tuple(_stretches(cluster_map, np.flatnonzero(mask)))

            def drop() -> None:
                for tree in list(self._replica.engine.trees.values()):
                    self._replica.engine.background.drop(tree, stretches)
                self._replica.clean(mask)

            await self._lane.run(drop)
        self._log.info("dropped", partitions=int(mask.sum()))


def _members(owners: NDArray[np.uint16]) -> list[int]:
    return [slot for slot in np.unique(owners).tolist() if slot != NOBODY]


def _stretches(cluster_map: ClusterMap, partitions: Iterable[int]) -> list[tuple[int, int]]:
    """Return the partitions' stretches of the hash order, neighbours joined."""
    out: list[tuple[int, int]] = []
    for partition in partitions:
        first, last = cluster_map.stretch(int(partition))
        if out and out[-1][1] + 1 == first:
            out[-1] = (out[-1][0], last)
        else:
            out.append((first, last))
    return out
