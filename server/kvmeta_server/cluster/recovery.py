"""Recovery: map, tables and volumes put back into an etcd that lost them, from the nodes' own copies.

    look     what etcd holds; what each node remembers, from a majority of the members at least
    plan     the newest of it, as its continuation: numbers above all that were given out. Nothing is written
    apply    pages of volumes first, then map and tables at once, if etcd still holds what was looked at

What nodes remember must be one history: where two went on apart, a person has to say which one is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from kvmeta.errors import CorruptionError, UnavailableError
from kvmeta.protocol.volume_pages import VolumePages
from kvmeta.v1 import cluster_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.cluster_map import ClusterMap, decode
from kvmeta_server.cluster.history import digest_of
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.seams import PeerError, Peers, Value
from kvmeta_server.cluster.tables import Tables, decode_tables

T = TypeVar("T")
DATASETS_APART, VOLUMES_APART = 1_000, 1 << 16
"""Numbers left out where a member does not answer: it may know of some that nobody else does."""
_PUTS = 64
_DONE_S = 10.0


@dataclass(frozen=True)
class Copy:
    """What a node remembers; `pages` are complete up to the tables of a serial."""

    map: ClusterMap
    tables: Tables
    pages_serial: int
    pages: Mapping[int, bytes]


@dataclass(frozen=True)
class Plan:
    """What is to be put back; `told` is what an operator is shown of it."""

    map: ClusterMap
    tables: Tables
    pages: Mapping[int, bytes]
    gone: tuple[int, ...]
    held: Mapping[str, int]
    told: pb.RecoverResponse = field(compare=False)


class Recovery:
    """Recovers the cluster through one node, `slot`."""

    def __init__(self, slot: int, membership: Membership, peers: Peers) -> None:
        self._slot = slot
        self._membership = membership
        self._peers = peers

    async def plan(self) -> Plan | None:
        """Return what is to be done; None where etcd holds what goes on from all that is known here.

        UnavailableError where etcd does not answer, where too few members do, or where they do not agree.
        """
        membership = self._membership
        await membership.load()
        if not membership.refusal:
            return None
        copies, silent = await self._copies()
        newest = _newest_map(copies)
        members = [member for member in newest.members if member.state != "removed"]
        answered = len([member for member in members if member.name not in silent])
        if 2 * answered <= len(members):
            raise UnavailableError(
                f"{answered} of {len(members)} members answer, and it takes more than half of them to know "
                f"what was lost; start the others first: {', '.join(silent)}"
            )
        tables, pages = _newest_tables(copies), _newest_pages(copies)
        held, pages_there = await membership.raw()
        there_map, there_tables = _there(held.get("map"), decode), _there(held.get("tables"), decode_tables)
        apart = (DATASETS_APART, VOLUMES_APART) if silent else (0, 0)
        known = [copy.tables for copy in copies] + ([there_tables] if there_tables is not None else [])
        raised = tables.raised(
            serial=max(each.serial for each in known),
            next_dataset=max(each.next_dataset for each in known) + apart[0],
            next_volume=max(each.next_volume for each in known) + apart[1],
        )
        recovered = newest.recovered(0 if there_map is None else there_map.epoch)
        return Plan(
            recovered, raised, pages, tuple(sorted(pages_there - pages.keys())),
            {key: held[key].revision if key in held else 0 for key in ("map", "tables")},
            _told(
                membership.refusal, newest, tables, pages, there_map, there_tables, silent, recovered, raised
            ),
        )  # fmt: skip

    async def apply(self, plan: Plan) -> None:
        """Put it back; UnavailableError where etcd holds something else by now."""
        membership = self._membership
        pages: dict[str, bytes | None] = {f"volumes/{page}": raw for page, raw in plan.pages.items()}
        pages |= {f"volumes/{page}": None for page in plan.gone}
        for some in _chunks(list(pages), _PUTS):
            await membership.change_all({key: pages[key] for key in some}, {})
        writes: dict[str, bytes | None] = {
            "tables": plan.tables.encode(), "id": plan.map.cluster_id.hex().encode(),
            "map": plan.map.encode(),
        }  # fmt: skip
        if not await membership.change_all(writes, plan.held):
            raise UnavailableError("etcd holds something else by now; look again at what is to be done")
        await membership.newer_than(plan.map.epoch - 1, _DONE_S)
        if membership.refusal:
            await membership.load()

    async def _copies(self) -> tuple[list[Copy], list[str]]:
        """Return what the members remember, this node first, and who of them does not answer."""
        membership = self._membership
        assert membership.tables is not None
        copies = [
            Copy(
                membership.current,
                membership.tables,
                membership.belief.pages_serial,
                dict(membership.volumes.pages),
            )
        ]
        asked = {self._slot}
        silent: list[str] = []
        while True:  # who has a newer map may know members more
            newest = _newest_map(copies)
            others = [m for m in newest.members if m.slot not in asked and m.state != "removed"]
            if not others:
                return copies, sorted(silent)
            asked |= {member.slot for member in others}
            told = await asyncio.gather(*(self._copy_of(member.slot) for member in others))
            copies += [copy for copy in told if copy is not None]
            silent += [m.name for m, copy in zip(others, told, strict=True) if copy is None]

    async def _copy_of(self, slot: int) -> Copy | None:
        try:
            first: peer.RememberedResponse = await self._peers.remembered(slot, 0)
            pages, reply = dict(first.pages), first
            while reply.pages and not reply.done:
                reply = await self._peers.remembered(slot, max(reply.pages) + 1)
                pages |= dict(reply.pages)
            return Copy(decode(first.map), decode_tables(first.tables), first.pages_serial, pages)
        except (PeerError, CorruptionError):
            return None


def _newest_map(copies: Iterable[Copy]) -> ClusterMap:
    """Return the map that all others became; UnavailableError where there is none."""
    newest = max((copy.map for copy in copies), key=lambda each: each.epoch)
    for copy in copies:
        if not newest.descends_from(copy.map.epoch, copy.map.digest):
            raise UnavailableError(
                f"the nodes remember two histories of the map: that of epoch {copy.map.epoch} did not become "
                f"that of {newest.epoch}. Stop the nodes whose data is wrong, then look again"
            )
    return newest


def _newest_tables(copies: Iterable[Copy]) -> Tables:
    newest = max((copy.tables for copy in copies), key=lambda each: each.serial)
    for copy in copies:
        if not newest.descends_from(copy.tables):
            raise UnavailableError(
                f"the nodes remember two histories of the tables: those of serial {copy.tables.serial} did "
                f"not become those of {newest.serial}. Stop the nodes whose data is wrong, then look again"
            )
    return newest


def _newest_pages(copies: Iterable[Copy]) -> Mapping[int, bytes]:
    pages: dict[int, bytes] = {}
    for copy in sorted(copies, key=lambda each: each.pages_serial):
        pages |= copy.pages
    return pages


def _there(held: Value | None, read: Callable[[bytes], T]) -> T | None:
    """Return what etcd holds, None where it is nothing that can be read."""
    if held is None:
        return None
    try:
        return read(held.data)
    except CorruptionError:
        return None


def _told(
    reason: str,
    newest: ClusterMap,
    tables: Tables,
    pages: Mapping[int, bytes],
    there_map: ClusterMap | None,
    there_tables: Tables | None,
    silent: list[str],
    recovered: ClusterMap,
    raised: Tables,
) -> pb.RecoverResponse:
    ours = {member.name for member in newest.members}
    theirs = set() if there_map is None else {member.name for member in there_map.members}
    datasets_there = set() if there_tables is None else set(there_tables.by_local_name)
    told = pb.RecoverResponse(
        reason=reason, epoch=newest.epoch, epoch_there=0 if there_map is None else there_map.epoch,
        serial=tables.serial, serial_there=0 if there_tables is None else there_tables.serial,
        silent=silent, members=sorted(ours), strangers=sorted(theirs - ours),
        datasets_back=sorted(tables.by_local_name.keys() - datasets_there),
        datasets_gone=sorted(datasets_there - tables.by_local_name.keys()),
        volumes=len(VolumePages(pages)), epoch_new=recovered.epoch, next_dataset=raised.next_dataset,
        next_volume=raised.next_volume,
    )  # fmt: skip
    told.plan = digest_of(told.SerializeToString(deterministic=True))
    return told


def _chunks(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
