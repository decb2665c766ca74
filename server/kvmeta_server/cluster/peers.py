"""Peers: the replicas of other nodes over the wire, and one's own without it. A failure detector beside.

A node that did not answer counts as gone until it answers a probe: calls to it fail at once meanwhile, so one
dead node costs one call's patience, not every call's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import ROW_WORDS
from kvmeta.errors import InputError, KvmetaError
from kvmeta.protocol.columns import CODE, LZ4, PLAIN, VERSION, Column, unpack, unpack_up_to
from kvmeta.protocol.messages import ColumnMessage, parse
from kvmeta.protocol.methods import PEER_METHODS
from kvmeta.protocol.status import NO_MEMBER, OTHER_HISTORY, OTHER_LIFE, TWIN, WRONG_NODE
from kvmeta.transport.failures import CallFailed, Kind
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.cluster_map import Member
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.parties import Parties, life_told
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.rows import BUCKETS, Applied, Bound, Fetched, Page
from kvmeta_server.cluster.seams import Lane, Maps, NotReachedError, Pace, PeerError, World

ROW: np.dtype[Any] = np.dtype("V48")
MIXED: np.dtype[Any] = np.dtype("V16")
PLACE: np.dtype[Any] = np.dtype("V24")
ROWS_MAX = 1 << 20
APPLY_ROWS = 65_536
"""In one message: as many as a client may send."""

FETCH_S = 2.0
APPLY_S = 5.0
STATE_S = 1.0
LONG_S = 3.0
"""A read does not try again and again for the sake of nodes that have not answered for so long."""
BOUNDS = {
    Bound.PROMISED: peer.BOUND_UNSPECIFIED,
    Bound.AGREED: peer.BOUND_AGREED,
    Bound.NONE: peer.BOUND_NONE,
}
OPERATIONS = {"insert": pb.OPERATION_INSERT, "relocate": pb.OPERATION_RELOCATE}

T = TypeVar("T")
Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]


class NodePeers:
    """The replicas of all nodes. `coordinator` is set once there is one: it decides inserts sent here."""

    def __init__(self, replica: Replica, maps: Maps, parties: Parties, world: World, pace: Pace) -> None:
        self._replica = replica
        self._maps = maps
        self._parties = parties
        parties.ask = self.state
        self._reads, self._writes = world.reads, world.writes
        self._wire = world.wire
        self._log = world.log
        self._told: set[str] = set()  # why others refuse this node
        self._pace = pace
        self._gone: dict[int, str] = {}
        self._gone_since: dict[int, float] = {}
        self._answered: dict[int, float] = {}  # when others last did
        self._probing: asyncio.Task[None] | None = None
        self.coordinator: Coordinator | None = None

    def start(self) -> None:
        """Probe the other nodes from now on."""
        self._probing = asyncio.ensure_future(self._probe())

    async def stop(self) -> None:
        """End; close all connections."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._parties.stop()
        await self._wire.close()

    def likely(self, slot: int) -> bool:
        """Return whether a node will probably answer."""
        if slot == self._replica.slot:
            return not self._parties.fenced
        return slot not in self._gone and self._member(slot) is not None

    def long_gone(self, slot: int) -> bool:
        """Return whether a node has not answered for so long that nobody waits for it."""
        if self.likely(slot):
            return False
        since = self._gone_since.get(slot)
        return since is None or asyncio.get_running_loop().time() - since > LONG_S

    def ago_s(self, slot: int) -> float | None:
        """Return how many seconds ago a node answered last; None where it never did."""
        at = self._answered.get(slot)
        return None if at is None else asyncio.get_running_loop().time() - at

    # What seams.Peers promises

    async def apply(
        self, slot: int, dataset: str, epoch: int, rows: Rows, bound: Bound = Bound.PROMISED
    ) -> Applied:
        """Merge rows into what a node holds."""
        if slot == self._replica.slot:
            return await self._here(self._writes, lambda: self._replica.apply(dataset, epoch, rows, bound))
        head = peer.ApplyRequest(dataset=dataset, epoch=epoch, bound=BOUNDS[bound])
        parts = [
            await self._apply(slot, head, rows[i : i + APPLY_ROWS]) for i in range(0, len(rows), APPLY_ROWS)
        ]
        if len(parts) == 1:
            return parts[0]
        return Applied(
            np.concatenate([part.outcomes for part in parts]),
            np.concatenate([part.versions for part in parts]),
        )

    async def _apply(self, slot: int, head: peer.ApplyRequest, rows: Rows) -> Applied:
        reply = await self._call(slot, "Apply", APPLY_S, head, rows=rows)
        outcomes = unpack(reply.outcomes, CODE, len(rows), "outcomes")
        versions = unpack_up_to(reply.versions, VERSION, len(rows), "versions")
        return Applied(outcomes, versions if len(versions) else np.zeros(len(rows), np.uint64))

    async def fetch(
        self, slot: int, dataset: str, epoch: int, mixed: Words, *, versions_only: bool = False
    ) -> Fetched:
        """Return what a node holds of mixed IDs."""
        if slot == self._replica.slot:
            return await self._here(
                self._reads, lambda: self._replica.fetch(dataset, epoch, mixed, versions_only=versions_only)
            )
        head = peer.FetchRequest(dataset=dataset, epoch=epoch, versions_only=versions_only)
        reply = await self._call(slot, "Fetch", FETCH_S, head, ids=mixed)
        n = len(mixed)
        locations = None
        if not versions_only:
            locations = unpack(reply.locations, PLACE, n, "locations").view(np.uint64).reshape(n, 3)
        return Fetched(
            unpack(reply.states, CODE, n, "states"),
            unpack(reply.versions, VERSION, n, "versions"),
            locations,
        )

    async def rows(self, slot: int, dataset: str, epoch: int, first: int, last: int, page_rows: int) -> Page:
        """Return a page of the rows that a node holds."""
        if slot == self._replica.slot:
            return await self._here(
                self._reads, lambda: self._replica.rows(dataset, epoch, first, last, page_rows)
            )
        head = peer.RowsRequest(
            dataset=dataset, epoch=epoch, first=first, last=last, page_rows=page_rows,
            reply_compression=LZ4,
        )  # fmt: skip
        reply = await self._call(slot, "Rows", self._pace.long_s, head)
        return Page(rows_of(reply.rows), reply.until)

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
        """Return a node's digests of partitions."""
        asked = list(partitions)
        if slot == self._replica.slot:
            return await self._here(
                self._reads,
                lambda: self._replica.digests(dataset, asked, cut_at, purged, expired, promise=promise),
            )
        head = peer.DigestRequest(
            dataset=dataset, partitions=asked, cut=cut_at, purged=purged.tolist(),
            expired=expired, promise=promise,
        )  # fmt: skip
        reply = await self._call(slot, "Digest", self._pace.long_s, head)
        digests = unpack(reply.digests, VERSION, len(asked) * BUCKETS, "digests")
        return digests.reshape(-1, BUCKETS), unpack(reply.agreed, VERSION, len(asked), "agreed")

    async def agree(self, slot: int, dataset: str, partitions: Iterable[int], version: int) -> None:
        """Tell a node up to where all owners agreed."""
        asked = list(partitions)
        if slot == self._replica.slot:
            await self._here(self._writes, lambda: self._replica.agree(dataset, asked, version))
            return
        head = peer.AgreeRequest(dataset=dataset, partitions=asked, version=version)
        await self._call(slot, "Agree", APPLY_S, head)

    async def decide(
        self, slot: int, dataset: str, epoch: int, operation: str, rows: Rows, expired: int
    ) -> tuple[NDArray[np.uint8], Rows]:
        """Let a node decide inserts or relocates."""
        if slot == self._replica.slot:
            assert self.coordinator is not None
            return await self.coordinator.decide_here(dataset, epoch, operation, rows, expired)
        head = peer.DecideRequest(
            dataset=dataset, epoch=epoch, operation=OPERATIONS[operation], expired=expired
        )
        reply = await self._call(slot, "Decide", APPLY_S * 2, head, rows=rows)
        outcomes = unpack(reply.outcomes, CODE, len(rows), "outcomes").copy()
        held = rows_of(reply.rows)
        return outcomes, held if len(held) else np.zeros_like(rows)

    async def tell(self, slot: int, tables: bytes) -> int:
        """Tell another node of the cluster's tables."""
        reply = await self._call(slot, "Tell", APPLY_S, peer.TellRequest(tables=tables), even_gone=True)
        return int(reply.serial)

    async def remembered(self, slot: int, pages_from: int) -> peer.RememberedResponse:
        """Ask another node what it remembers."""
        request = peer.RememberedRequest(pages_from=pages_from)
        reply = await self._call(slot, "Remembered", APPLY_S, request, even_gone=True)
        return cast("peer.RememberedResponse", reply)

    async def state(self, slot: int) -> peer.StateResponse:
        """Ask a node how it is."""
        request = peer.StateRequest()
        reply = await self._call(slot, "State", STATE_S, request, even_gone=True)
        return cast("peer.StateResponse", reply)

    async def _here(self, lane: Lane, work: Callable[[], T]) -> T:
        try:
            self._parties.check_alone()
            return await lane.run(work)
        except KvmetaError as error:
            raise PeerError(f"this node: {error}") from error

    async def _call(
        self,
        slot: int,
        method: str,
        timeout_s: float,
        head: Message,
        *,
        even_gone: bool = False,
        **columns: NDArray[Any],
    ) -> Any:
        node = self._member(slot)
        if node is None:
            raise NotReachedError(f"node {slot} is no member any more, or has lost its address")
        if slot in self._gone and not even_gone:
            raise NotReachedError(f"node {node.name} at {node.address} does not answer ({self._gone[slot]})")
        if self._parties.fenced:
            raise NotReachedError(self._parties.fenced)
        head.parties.CopyFrom(self._parties.to(node))  # type: ignore[attr-defined]
        raw = ColumnMessage.of(head, PLAIN, **columns).SerializeToString()
        asked_at = asyncio.get_running_loop().time()
        try:
            reply = await self._wire.call(node.address, PEER_METHODS[method], raw, timeout_s)
            parsed = parse(PEER_METHODS[method].response, reply)
        except CallFailed as failed:
            self._refused(node, failed)
            away = failed.kind not in (Kind.ANSWERED, Kind.NOT_SENT) or failed.reason in (WRONG_NODE, TWIN)
            if away and not even_gone:
                self._miss(slot, str(failed))
            kind = PeerError if failed.begun else NotReachedError
            raise kind(f"node {node.name} at {node.address}, {method}: {failed}") from None
        except InputError as error:
            raise PeerError(
                f"node {node.name} at {node.address} answered {method} wrongly: {error}"
            ) from None
        if life := life_told(parsed):
            self._parties.answered(slot, life, asked_at)
        if slot in self._parties.twins:
            self._miss(slot, self._parties.twins[slot])
            raise PeerError(self._parties.twins[slot])
        self._gone.pop(slot, None)
        self._gone_since.pop(slot, None)
        self._answered[slot] = asyncio.get_running_loop().time()
        return parsed

    def _refused(self, node: Member, failed: CallFailed) -> None:
        """Take in why a node will have nothing to do with this one, if that is so."""
        if failed.reason == OTHER_LIFE:
            self._parties.fence(str(failed))
        elif failed.reason in (NO_MEMBER, OTHER_HISTORY) and failed.reason not in self._told:
            self._told.add(failed.reason)
            self._log.warning("refused by others", node=node.name, reason=str(failed))

    def _member(self, slot: int) -> Member | None:
        """Return a node; None where it was removed or lost its address: there may be another by now."""
        node = self._maps.current.by_slot.get(slot)
        return None if node is None or node.state == "removed" or not node.address else node

    async def _probe(self) -> None:
        """Ask nodes that have answered nothing lately for a sign of life, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            lately = started - self._pace.probe_s / 2
            others = {node.slot for node in self._maps.current.members if node.slot != self._replica.slot}
            silent = [s for s in others if s in self._gone or self._answered.get(s, -math.inf) < lately]
            await asyncio.gather(*(self._probe_one(slot) for slot in silent))
            for slot in self._gone.keys() - others:
                del self._gone[slot]
                self._gone_since.pop(slot, None)
            await asyncio.sleep(max(0.05, self._pace.probe_s - (loop.time() - started)))

    async def _probe_one(self, slot: int) -> None:
        try:
            await self.state(slot)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next probe comes
            self._miss(slot, str(error))

    def _miss(self, slot: int, reason: str) -> None:
        self._gone[slot] = reason
        self._gone_since.setdefault(slot, asyncio.get_running_loop().time())


def rows_of(packed: Column) -> Rows:
    """Return the rows u8[n, 6] of a message."""
    column = unpack_up_to(packed, ROW, ROWS_MAX, "rows")
    return column.view(np.uint64).reshape(len(column), ROW_WORDS)
