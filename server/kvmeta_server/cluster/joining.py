"""Joining: who a node is, whether the authority knows it, and whether it may come, or come back."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from kvmeta.engine.state import State
from kvmeta.errors import (
    FormatError,
    InputError,
    KvmetaError,
    NotFoundError,
    StoreLockedError,
    UnavailableError,
)
from kvmeta.protocol.messages import parse
from kvmeta.protocol.methods import PEER_METHODS
from kvmeta.transport.failures import CallFailed
from kvmeta.v1 import peer_pb2 as peer
from kvmeta.version import EPOCH_MS, MS_SHIFT
from kvmeta_server.cluster import cluster_map as maps
from kvmeta_server.cluster.cluster_map import ClusterMap, Member, decode
from kvmeta_server.cluster.membership import LEASE_S, Membership
from kvmeta_server.cluster.node_state import Identity, NodeState
from kvmeta_server.cluster.parties import life_of
from kvmeta_server.cluster.seams import Pace, World
from kvmeta_server.config import ClusterSettings, Unsaid

RESERVE_MS = 10_000
"""How far ahead of its clock a node notes that it may have stamped."""
_ETCD_WAIT_S = 10.0
_IDLE_S = 60.0
_SEEN_S = 1.0


class Joining:
    """The way of one node into its cluster. `name` is the node's."""

    def __init__(
        self,
        settings: ClusterSettings,
        engine: State,
        world: World,
        state: NodeState,
        membership: Membership,
        pace: Pace,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._world = world
        self._state = state
        self._membership = membership
        self._log = world.log
        self._up_s = 1.5 * pace.probe_s + _SEEN_S  # a node that answered others so lately is up
        self.life = 0
        """The number of this life of the node, once it has joined (parties.py)."""
        self.name = settings.node or f"{socket.gethostname()}-{settings.advertise.rpartition(':')[2]}"

    async def join(self) -> ClusterMap | None:
        """Become, or be again, a member; raise what keeps this node from it.

        Returns the map that was remembered here, if one was. Without etcd a member goes on with that.
        """
        self._check_identity()
        remembered = self._state.map()
        self._membership.belief.go_on_with(remembered, self._state.tables(), self._state.volumes())
        try:
            await self._load()
            if self._membership.refusal:
                raise UnavailableError(self._membership.refusal)
        except UnavailableError as error:
            if remembered is None or self._state.identity is None:
                raise
            self._log.warning(
                "etcd does not answer", message=f"{error}; going on with epoch {remembered.epoch}"
            )
            self._check_membership(remembered)
            self._begin()
            await self._ask_for_twins(remembered)
        else:
            await self._join()
            self._begin()
        identity = self._state.identity
        assert identity is not None
        self._check_clock(identity, self._membership.current)
        return remembered

    def _begin(self) -> None:
        # The time, so that whoever starts last has the largest number, whatever a copy of its data counted.
        seconds = (self._engine.clock.now_ms() - EPOCH_MS) // 1000
        nonce = int.from_bytes(self._world.random_bytes(4), "little")
        self.life = life_of(self._state.begin(seconds), nonce)

    def _check_identity(self) -> None:
        identity, wanted = self._state.identity, self._settings.name
        if identity is None:
            return
        if identity.cluster != wanted:
            raise InputError(
                f"{self._engine.path} belongs to node {identity.name!r} of cluster "
                f"{identity.cluster!r}, not of {wanted!r}; give --data an empty directory, or --cluster "
                f"{identity.cluster}"
            )
        if self._settings.node and self._settings.node != identity.name:
            raise InputError(
                f"{self._engine.path} is the data of node {identity.name!r}, not of "
                f"{self._settings.node!r}; start it with the --data that is its own"
            )
        self.name = identity.name

    def _check_membership(self, cluster_map: ClusterMap) -> None:
        identity = self._state.identity
        assert identity is not None
        if identity.cluster_id != cluster_map.cluster_id.hex():
            raise FormatError(
                f"etcd at {self._world.authority.url} has another cluster of the name {cluster_map.name!r} "
                f"({cluster_map.cluster_id.hex()}) than this node's ({identity.cluster_id}); "
                "two clusters need two names, or two etcds"
            )
        with suppress(NotFoundError):
            node = cluster_map.member(identity.name)
            if node.slot == identity.slot and node.state != "removed":
                return
        raise InputError(
            f"node {identity.name!r} was taken out of cluster {cluster_map.name!r}, and others have its "
            "data; it does not come back by itself. To join as a new node, empty "
            f"{self._engine.path} first"
        )

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + (_ETCD_WAIT_S if self._state.identity is None else LEASE_S / 2)
        while True:
            try:
                await self._membership.load()
                return
            except UnavailableError:
                if loop.time() > end:
                    raise
                await asyncio.sleep(0.2)

    async def _join(self) -> None:
        engine, settings = self._engine, self._settings
        store_id = engine.identity.store_id.hex()
        us = Member(0, self.name, settings.advertise, settings.zone, settings.weight, "active", store_id)
        if self._state.identity is None:
            rows = sum(tree.rows for tree in engine.trees.values())
            if rows:
                raise InputError(
                    f"{engine.path} holds {rows:,} entries of a single server; a node starts empty. "
                    "Copy them in through any node with load"
                )
            founded = maps.found(
                settings.name, self._world.random_bytes(16), us, partitions=settings.partitions,
                replicas=settings.replicas, write_quorum=settings.write_quorum,
                max_skew_ms=round(settings.max_skew_s * 1000),
            )  # fmt: skip
            if await self._may_found() and await self._membership.found(founded):
                cluster_map = founded
            else:
                await self._wait_for_address(us)
                cluster_map = await self._membership.change_map(lambda held: self._with_us(held, us))
            slot = cluster_map.member(self.name).slot
            self._state.set_identity(Identity(cluster_map.cluster_id.hex(), settings.name, self.name, slot))
            self._log.info(
                "joined", cluster=settings.name, node=self.name, slot=slot, epoch=cluster_map.epoch
            )
        else:
            raw = self._membership.value("map")
            if raw is None:  # nor does this node remember one
                raise UnavailableError(
                    f"etcd at {self._world.authority.url} has no cluster {settings.name!r}, and "
                    f"{engine.path} is of one: is it another etcd, or one that lost its data?"
                )
            held = decode(raw)
            self._check_membership(held)
            self._check_founding(held)
            await self._refuse_twin(self._state.identity.slot)
            await self._ask_for_twins(
                held
            )  # etcd may have been away until just now, and has no signs of life
            node = self._membership.current.member(self.name)
            if node.store_id != store_id:
                raise InputError(
                    f"node {self.name!r} had store {node.store_id}, and {engine.path} is {store_id}: "
                    "another node's data, or a copy; a node that lost its data joins under a new name"
                )
            if (node.address, node.zone, node.weight) != (us.address, us.zone, us.weight):
                await self._wait_for_address(us)
                await self._membership.change_map(
                    lambda held: held.with_member(
                        self.name, address=us.address, zone=us.zone, weight=us.weight
                    )
                )
        await self._membership.load()

    def _check_founding(self, held: ClusterMap) -> None:
        """Raise InputError where a setting was given of which the cluster was founded with another value."""
        for name in ("replicas", "write_quorum", "partitions"):
            given, there = getattr(self._settings, name), getattr(held, name)
            if given != there and not isinstance(given, Unsaid):
                raise InputError(
                    f"cluster.{name}: {given} was given, and cluster {held.name!r} at "
                    f"{self._world.authority.url} was founded with {there}, which stays. Leave the setting "
                    "out to join that cluster; another cluster needs another name"
                )

    def _with_us(self, held: ClusterMap, us: Member) -> ClusterMap:
        self._check_founding(held)
        for node in held.members:
            if node.name == us.name:
                if node.store_id == us.store_id and node.state == "active":
                    return held  # we were here, and died before we noted it
                raise InputError(
                    f"cluster {held.name!r} has a node {us.name!r} already, with other data; give this one "
                    "another --node name, or remove the old one first: kvmeta cluster remove"
                )
        return held.joined(us)

    async def _may_found(self) -> bool:
        """Return whether there is no cluster yet; UnavailableError where etcd has lost one."""
        if self._membership.value("map") is not None:
            return False
        left = self._membership.value("id")
        if left is not None or self._membership.live():
            raise UnavailableError(
                f"etcd at {self._world.authority.url} has lost cluster {self._settings.name!r}: its nodes "
                "are there, its map is not. kvmeta cluster recover, asked of one of them, puts it back"
            )
        return True

    # Its address

    async def _wait_for_address(self, us: Member) -> None:
        """Wait until whoever has our address holds no lease any more; InputError where it goes on."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LEASE_S + 2
        while (other := await self._other_at(us.address)) is not None:
            if loop.time() > end:
                raise InputError(
                    f"cluster {self._settings.name!r} knows {us.address} as node {other.name!r}, which is "
                    "up; two nodes need two addresses (--advertise)"
                )
            await asyncio.sleep(0.2)

    async def _other_at(self, address: str) -> Member | None:
        """Return the node that has an address and is not this one, if it is up."""
        raw = await self._membership.read("map")
        other = None if raw is None else decode(raw.data).at(address)
        if other is None or other.name == self.name:
            return None
        return None if await self._membership.read(f"live/{other.slot}") is None else other

    async def keep_address(self, fence: Callable[[str], None]) -> None:
        """Take this node's address back where another member has taken it over and is gone, for ever.

        While it was away, or held no lease, another could take it. Only a node itself gives itself another
        address, at its start: where that happens in this life, `fence` is told of the other one.
        """
        told, had = "", False
        while True:
            now = self._membership.current
            us = now.by_slot.get(self._slot)
            lacks = ""
            if us is None or us.state == "removed":
                lacks = "removed"
                reason = f"node {self.name!r} was taken out of the cluster; others refuse it"
            elif us.address == self._settings.advertise:
                had = True
            elif us.address and had:
                fence(f"node {us.slot} lives twice, the other one at {us.address}: its data was copied")
            else:
                lacks = "others do not ask this node"
                reason = f"its address {self._settings.advertise} is not its own in the map"
            if lacks and lacks != told:
                self._log.warning(lacks, reason=reason)
            told = lacks
            if lacks == "others do not ask this node" and self._membership.is_alive:
                with suppress(KvmetaError):
                    taken = await self._other_at(self._settings.advertise) is not None
                    # What this node had before may be what the other waits for.
                    address = "" if taken else self._settings.advertise
                    await self._membership.change_map(partial(self._at, address))
            await self._membership.newer_than(now.epoch, LEASE_S if lacks else _IDLE_S)

    def _at(self, address: str, held: ClusterMap) -> ClusterMap:
        """Return the map with this node at an address."""
        if held.member(self.name).address == address:
            return held
        return held.with_member(self.name, address=address)

    @property
    def _slot(self) -> int:
        identity = self._state.identity
        return -1 if identity is None else identity.slot

    async def _refuse_twin(self, slot: int) -> None:
        """Wait for the lease of our last life to end; StoreLockedError where somebody keeps it alive."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LEASE_S + 2
        while await self._lives(slot):
            if loop.time() > end:
                raise StoreLockedError(
                    f"node {self.name!r} of cluster {self._settings.name!r} is up elsewhere: was its data "
                    "copied?"
                )
            await asyncio.sleep(0.2)

    async def _lives(self, slot: int) -> bool:
        """Return whether etcd has a sign of life of a node with this one's store."""
        held = await self._membership.read(f"live/{slot}")
        return held is not None and held.data.startswith(self._engine.identity.store_id.hex().encode())

    async def _ask_for_twins(self, remembered: ClusterMap) -> None:
        """Ask the other members whether a node with this one's data takes part already.

        StoreLockedError where one says so for longer than our last life may have been the one it means.
        """
        identity = self._state.identity
        assert identity is not None
        loop, silence = asyncio.get_running_loop(), math.inf
        started = loop.time()
        end = started + max(LEASE_S, self._up_s) + 2
        others = [
            node
            for node in remembered.members
            if node.slot != identity.slot and node.state != "removed" and node.address
        ]
        while others and loop.time() < end:
            asked = await asyncio.gather(*(self._seen_by(node, remembered, identity.slot) for node in others))
            told = [seen for seen in asked if seen is not None]
            silence = min(told, default=math.inf)
            if silence > self._up_s and (told or loop.time() > started + self._up_s):
                return
            await asyncio.sleep(0.5)
        if silence <= self._up_s:
            raise StoreLockedError(
                f"node {self.name!r} of cluster {self._settings.name!r} is up elsewhere, others say: was its "
                "data copied?"
            )

    async def _seen_by(self, node: Member, remembered: ClusterMap, slot: int) -> float | None:
        """Return how long ago this node answered another, as that one says; None where it does not answer."""
        method = PEER_METHODS["Seen"]
        request = peer.SeenRequest(
            cluster=remembered.cluster_id, to_slot=node.slot, to_store=bytes.fromhex(node.store_id), slot=slot
        )
        try:
            raw = await self._world.wire.call(node.address, method, request.SerializeToString(), _SEEN_S)
            reply: Any = parse(method.response, raw)
        except (CallFailed, InputError):
            return None
        return reply.ago_s if reply.answered else math.inf

    def _check_clock(self, identity: Identity, cluster_map: ClusterMap) -> None:
        now_ms = self._engine.clock.now_ms()
        ahead_ms = (identity.ceiling >> MS_SHIFT) + EPOCH_MS - now_ms
        if identity.ceiling and ahead_ms > cluster_map.max_skew_ms + RESERVE_MS:
            raise UnavailableError(
                f"this node has stamped up to {ahead_ms / 1000:.0f} s ahead of its clock, which is more than "
                f"the {cluster_map.max_skew_ms / 1000:g} s allowed; set the clock right, or wait until it is "
                "there"
            )
