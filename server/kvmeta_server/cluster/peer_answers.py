"""What a node answers to its peers: one function a call of PeerService. Parsing and lanes; no gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kvmeta.errors import InputError, NotFoundError, UnavailableError
from kvmeta.protocol.codes import Outcome
from kvmeta.protocol.columns import PLAIN, unpack_up_to
from kvmeta.protocol.messages import ColumnMessage
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.parties import Parties
from kvmeta_server.cluster.peers import MIXED, OPERATIONS, ROWS_MAX, rows_of
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.rows import Bound
from kvmeta_server.cluster.seams import World
from kvmeta_server.cluster.tables import Tables, decode_tables

MAP_WAIT_S = 1.0
PAGES_BYTES_MAX = 2 << 20
_OPERATIONS = {number: name for name, number in OPERATIONS.items()}


class PeerAnswers:
    """The answers of one replica."""

    def __init__(
        self,
        replica: Replica,
        coordinator: Coordinator,
        membership: Membership,
        parties: Parties,
        world: World,
        state: Callable[[], peer.StateResponse],
        make_datasets: Callable[[Tables | None], Any],
        ago_s: Callable[[int], float | None],
    ) -> None:
        self._replica = replica
        self._coordinator = coordinator
        self._membership = membership
        self._parties = parties
        self._reads, self._writes = world.reads, world.writes
        self._state = state
        self._make_datasets = make_datasets
        self._ago_s = ago_s

    async def apply(self, request: Any) -> ColumnMessage:
        """Merge rows."""
        await self._ready(request)
        rows = rows_of(request.rows)
        outcomes, versions = await self._writes.run(
            lambda: self._replica.apply(request.dataset, request.epoch, rows, Bound(request.bound))
        )
        head = peer.ApplyResponse(epoch=self._replica.map.epoch)
        told = versions if ((outcomes == Outcome.STALE) | (outcomes == Outcome.REFUSED)).any() else None
        return ColumnMessage.of(head, PLAIN, outcomes=outcomes, versions=told)

    async def fetch(self, request: Any) -> ColumnMessage:
        """Return what is held."""
        await self._ready(request)
        column = unpack_up_to(request.ids, MIXED, ROWS_MAX, "ids")
        mixed = column.view(np.uint64).reshape(-1, 2)
        got = await self._reads.run(
            lambda: self._replica.fetch(
                request.dataset, request.epoch, mixed, versions_only=request.versions_only
            )
        )
        head = peer.FetchResponse(epoch=self._replica.map.epoch)
        return ColumnMessage.of(
            head, PLAIN, states=got.states, versions=got.versions, locations=got.locations
        )

    async def decide(self, request: Any) -> ColumnMessage:
        """Decide an insert or a relocate."""
        await self._ready(request)
        if request.operation not in _OPERATIONS:
            raise InputError(f"operation: expected INSERT or RELOCATE, got {request.operation}")
        operation = _OPERATIONS[request.operation]
        rows = rows_of(request.rows)
        outcomes, held = await self._coordinator.decide_here(
            request.dataset, request.epoch, operation, rows, request.expired
        )
        head = peer.DecideResponse(epoch=self._replica.map.epoch)
        return ColumnMessage.of(head, PLAIN, outcomes=outcomes, rows=held if operation == "insert" else None)

    async def rows(self, request: Any) -> ColumnMessage:
        """Return a page of rows."""
        await self._ready(request)
        page_rows = min(request.page_rows or ROWS_MAX, ROWS_MAX)
        page = await self._reads.run(
            lambda: self._replica.rows(request.dataset, request.epoch, request.first, request.last, page_rows)
        )
        head = peer.RowsResponse(epoch=self._replica.map.epoch, until=page.until)
        return ColumnMessage.of(head, request.reply_compression, rows=np.ascontiguousarray(page.rows))

    async def digest(self, request: Any) -> ColumnMessage:
        """Return digests."""
        await self._ready(request)
        purged = np.array(request.purged, np.uint64)
        if len(purged) != len(request.partitions):
            raise InputError(f"purged: expected {len(request.partitions)} versions, got {len(purged)}")
        digests, agreed = await self._reads.run(
            lambda: self._replica.digests(
                request.dataset, list(request.partitions), request.cut, purged, request.expired,
                promise=request.promise,
            )
        )  # fmt: skip
        return ColumnMessage.of(peer.DigestResponse(), PLAIN, digests=digests.reshape(-1), agreed=agreed)

    async def agree(self, request: Any) -> peer.AgreeResponse:
        """Note agreement."""
        await self._ready(request)
        partitions = list(request.partitions)
        await self._writes.run(lambda: self._replica.agree(request.dataset, partitions, request.version))
        return peer.AgreeResponse()

    async def state(self, request: Any) -> peer.StateResponse:
        """Say how this node is."""
        self._parties.check_receiver(request.parties)
        if request.parties.from_epoch <= self._membership.current.epoch:  # else it may be a new member
            self._parties.check_member(request.parties)
            self._parties.look_at(request.parties)
        return self._state()

    async def tell(self, request: Any) -> peer.TellResponse:
        """Learn of tables."""
        self._parties.check_receiver(request.parties)
        await self._parties.check_sender(request.parties)
        serial = self._membership.belief.learn(decode_tables(request.tables))
        await self._make_datasets(self._membership.tables)
        return peer.TellResponse(serial=serial)

    async def remembered(self, request: Any) -> peer.RememberedResponse:
        """Say what is remembered here."""
        self._parties.check_receiver(request.parties)
        membership = self._membership
        assert membership.tables is not None
        told = peer.RememberedResponse(
            map=membership.current.encode(), tables=membership.tables.encode(),
            pages_serial=membership.belief.pages_serial, done=True,
        )  # fmt: skip
        size = 0
        for page, raw in sorted(membership.volumes.pages.items()):
            if page < request.pages_from:
                continue
            if size and size + len(raw) > PAGES_BYTES_MAX:
                told.done = False
                break
            told.pages[page] = raw
            size += len(raw)
        return told

    async def seen(self, request: Any) -> peer.SeenResponse:
        """Say when a node answered last."""
        self._parties.check_receiver(request)
        ago_s = self._ago_s(request.slot)
        return peer.SeenResponse(answered=ago_s is not None, ago_s=ago_s or 0.0)

    async def _ready(self, request: Any) -> None:
        """Be who is asked, have the sender's map if it is newer, know the sender, and have the dataset."""
        self._parties.check_receiver(request.parties)
        epoch = request.parties.from_epoch
        if epoch > self._membership.current.epoch:
            await self._membership.newer_than(epoch - 1, MAP_WAIT_S)
            if epoch > self._membership.current.epoch:
                raise UnavailableError(f"this node has not seen the map of epoch {epoch} yet")
        await self._parties.check_sender(request.parties)
        try:
            self._replica.tree(request.dataset)
        except NotFoundError:
            await self._make_datasets(None)
