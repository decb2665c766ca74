"""The cluster as a backend: a node coordinates what it is asked, on its event loop.

What keeps the loop's processor longer than handing it over costs, such as sorting a large batch's IDs, is
done by lanes; so is what may wait for the disk, such as a look into this node's own replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage
from kvmeta.batch import Outcome as Relocation
from kvmeta.embedded import EmbeddedStore, locations_of, words_of
from kvmeta.engine.distinct import Distinct
from kvmeta.engine.kernels import hashing
from kvmeta.engine.kernels.layout import VERSION, WORD3
from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import DeadlineError, OutcomeUnknownError
from kvmeta.protocol.codes import Outcome, State
from kvmeta.protocol.columns import PLAIN
from kvmeta.protocol.messages import ColumnMessage
from kvmeta.protocol.status import WRONG_NODE
from kvmeta.store import Scan, StoreStats, inserted, relocated
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta_server.backend import Named
from kvmeta_server.cluster.dataset_table import DatasetTable
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.scanning import Scanning
from kvmeta_server.cluster.seams import Lane
from kvmeta_server.cluster.volumes import VolumeTable
from kvmeta_server.refusal import Refused

CALL_S = 30.0
"""How long coordination may take in all."""
INLINE_ROWS = 1024
"""Rows that the loop sorts itself: handing them over would cost as much."""

Ids = NDArray[np.void]
Locations = NDArray[np.void]
States = NDArray[np.uint8]
Words = NDArray[np.uint64]


class ClusterBackend:
    """The whole cluster, seen from a node that has joined."""

    waits = True

    def __init__(self, local: EmbeddedStore, node: Node, reads: Lane, writes: Lane) -> None:
        self.local = local
        self.volumes = VolumeTable(node.membership)
        self.store = ClusterStore(local, node, self.volumes, writes)
        self._keys = local.engine.keys
        self._replica = node.replica
        self._coordinator = node.coordinator
        self._maps = node.membership
        self._peers = node.peers
        self._scanning = Scanning(node.membership, node.peers, node.coordinator, self._keys)
        self._reads, self._writes = reads, writes

    @property
    def epoch(self) -> int:
        """Return the map's epoch."""
        return self._maps.current.epoch

    def get_map(self) -> ColumnMessage:
        """Return the cluster's map."""
        cluster_map = self._maps.current
        nodes = [
            pb.Node(slot=each.slot, name=each.name, address=each.address, live=self._peers.likely(each.slot))
            for each in cluster_map.members
        ]
        head = pb.GetMapResponse(
            epoch=cluster_map.epoch, partitions=cluster_map.partitions, replicas=cluster_map.replicas,
            write_quorum=cluster_map.write_quorum, nodes=nodes, cluster=cluster_map.cluster_id,
        )  # fmt: skip
        return ColumnMessage.of(head, PLAIN, owners=np.ascontiguousarray(cluster_map.readers))

    def check_cluster(self, cluster: bytes) -> None:
        """Raise Refused where this node is of another cluster."""
        ours = self._maps.current
        if cluster != ours.cluster_id:
            raise Refused(
                WRONG_NODE,
                f"this node is of cluster {ours.name!r}, {ours.cluster_id.hex()}, and {cluster.hex()} was "
                "meant; do two clusters share an address?",
            )

    # Reads

    async def lookup(self, dataset: Named, ids: Ids, *, fast: bool) -> tuple[Hits, States]:
        """Look up IDs, at this node's replica where that is all that has to be asked."""
        async with _in_time():
            name = await self.store.local_name(dataset)
            mixed = np.empty((len(ids), 2), np.uint64)
            hashing.mix(words_of(ids, 2), self._keys, mixed)
            here = await self._here(name, mixed, fast=fast)
            if here is None:
                return await self._asked(name, mixed, fast=fast)
            hits, states = here
            missed = np.flatnonzero(states != State.FOUND)
            if fast and len(missed):  # a miss of one replica may be a hit of others
                confirmed, told = await self._asked(name, np.ascontiguousarray(mixed[missed]), fast=False)
                hits.found[missed], hits.failed[missed] = confirmed.found, confirmed.failed
                hits.locations.view("V24")[missed] = confirmed.locations.view("V24")
                hits.versions[missed], states[missed] = confirmed.versions, told
            return hits, states

    async def _asked(self, name: str, mixed: Words, *, fast: bool) -> tuple[Hits, States]:
        """Look up mixed IDs at as many replicas as it takes."""
        got = await self._coordinator.read(name, mixed, fast=fast)
        answered = got.states == State.ANSWERED
        live = answered & ~self._coordinator.absent(name, got.rows)
        rows = got.rows
        rows[~live, VERSION:] = 0
        states = np.where(answered, live.view(np.uint8), got.states)  # found is 1, absent 0
        return Hits(live, locations_of(rows[:, WORD3:]), rows[:, VERSION].copy(), ~answered), states

    async def _here(self, name: str, mixed: Words, *, fast: bool) -> tuple[Hits, States] | None:
        """Look up mixed IDs at this node's replica, where that is all that has to be asked; else None."""
        replica = self._replica
        cluster_map = replica.map
        enough = cluster_map.read_at(replica.slot) if fast else cluster_map.read_alone(replica.slot)
        if not len(mixed) or not enough[cluster_map.partition_of(mixed[:, 0])].all():
            return None
        tree = replica.tree(name)
        got = await self._reads.run(lambda: tree.lookup(mixed))
        if replica.map is not cluster_map:  # it may be somebody else's by now
            return None
        failed = got.failed.view(np.bool_)
        hits = Hits(got.found.view(np.bool_), locations_of(got.locations), got.versions, failed)
        return hits, np.where(failed, np.uint8(State.FAILED), got.found)

    async def scan_page(self, dataset: Named, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan, as quorums of each partition's replicas have it."""
        async with _in_time():
            return await self._scanning.page(dataset.name, await self.store.local_name(dataset), scan)

    # Writes

    async def put(self, dataset: Named, ids: Ids, locations: Locations) -> None:
        """Set locations; OutcomeUnknownError says in `.failed` which IDs are not acknowledged."""
        await self._write(dataset, ids, words_of(locations, 3), delete=False)

    async def delete(self, dataset: Named, ids: Ids) -> None:
        """Remove IDs, as `put` sets them."""
        await self._write(dataset, ids, np.zeros((len(ids), 3), np.uint64), delete=True)

    async def _write(self, dataset: Named, ids: Ids, words: Words, *, delete: bool) -> None:
        async with _in_time():
            name = await self.store.local_name(dataset)
            distinct = await self._distinct(ids, words, last=True)
            if not len(distinct.rows):
                return
            written = await self._coordinator.write(name, distinct.rows, delete=delete)
            if not written.acknowledged.all():
                raise _unacknowledged(distinct.spread(~written.acknowledged), written.reason)

    async def insert(self, dataset: Named, ids: Ids, locations: Locations) -> Inserted:
        """Set locations of absent IDs; an error's `.partial` has what was decided."""
        async with _in_time():
            name = await self.store.local_name(dataset)
            distinct = await self._distinct(ids, words_of(locations, 3), last=False)
            outcomes, held, reason = await self._coordinator.decide(name, "insert", distinct.rows)
            unknown, took_effect = outcomes == Outcome.UNACKNOWLEDGED, outcomes == Outcome.TOOK_EFFECT
            result = Inserted(
                distinct.spread(took_effect) & distinct.winners(),
                locations_of(distinct.spread(held[:, WORD3:])),
                np.ascontiguousarray(distinct.spread(held[:, VERSION])),
                distinct.spread(~took_effect & (outcomes != Outcome.EXISTS)),
            )
            if unknown.any():
                raise _unacknowledged(distinct.spread(unknown), reason, result)
            return inserted(dataset.name, result)

    async def relocate(
        self, dataset: Named, ids: Ids, locations: Locations, versions: NDArray[np.uint64]
    ) -> Relocated:
        """Set locations of IDs that are still of the versions seen, as `insert` does of absent ones."""
        async with _in_time():
            name = await self.store.local_name(dataset)
            distinct = await self._distinct(ids, words_of(locations, 3), last=False)
            distinct.rows[:, VERSION] = versions[distinct.kept]
            decided, _, reason = await self._coordinator.decide(name, "relocate", distinct.rows)
            outcomes = distinct.spread(decided).copy()
            unknown = outcomes == Outcome.UNACKNOWLEDGED
            outcomes[~distinct.winners()] = Relocation.REPEATED
            result = Relocated(outcomes == Relocation.RELOCATED, outcomes)
            if unknown.any():
                raise _unacknowledged(unknown, reason, result)
            return relocated(dataset.name, result)

    async def _distinct(self, ids: Ids, words: Words, *, last: bool) -> Distinct:
        make = partial(Distinct.of, words_of(ids, 2), words, self._keys, last=last)
        return make() if len(ids) <= INLINE_ROWS else await self._writes.run(make)


class ClusterStore(DatasetTable):
    """What a store is asked besides batches: datasets are the cluster's, flush and figures this node's."""

    def __init__(self, local: EmbeddedStore, node: Node, volumes: VolumeTable, lane: Lane) -> None:
        super().__init__(node.slot, node.membership, node.peers, node.datasets.make)
        self._local = local
        self._volumes = volumes
        self._lane = lane

    async def dataset_numbers(self) -> dict[str, int]:
        """Return the numbers of the datasets by name."""
        return {DEFAULT_DATASET: 0} | {name: row.id for name, row in (await self._datasets_now()).items()}

    async def flush(self) -> None:
        """Write what is in this node's memory to runs."""
        await self._lane.run(self._local.flush)

    async def stats(self) -> StoreStats:
        """Return this node's figures; the volumes are the cluster's."""
        return replace(await self._lane.run(self._local.stats), volumes=self._volumes.count())


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Bound what waits for other nodes."""
    try:
        async with asyncio.timeout(CALL_S) as bound:
            yield
    except TimeoutError as error:
        if isinstance(error, DeadlineError) or not bound.expired():
            raise
        raise DeadlineError(f"the other nodes did not answer within {CALL_S:g} s") from None


def _unacknowledged(failed: NDArray[np.bool_], reason: str, partial_: Any = None) -> OutcomeUnknownError:
    error = OutcomeUnknownError(
        f"{int(failed.sum())} of {len(failed)} IDs are not acknowledged and may or may not take effect: "
        f"{reason}"
    )
    error.failed = failed
    error.partial = partial_
    return error
