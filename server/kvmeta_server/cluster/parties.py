"""Between whom a request is: each names the node it is for and the node it comes from; both are looked at.

Addresses, slots and epochs may be used again. So what is asked says which node it means, by slot, store and
cluster; whoever is asked refuses to be another. Who asks says who it is, and in which of its lives: where two
processes live with one node's data at once (a copied directory), whoever sees both refuses both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from kvmeta.errors import UnavailableError
from kvmeta.protocol.status import NO_MEMBER, OTHER_HISTORY, OTHER_LIFE, TWIN, UNPROVEN, WRONG_NODE
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.cluster_map import ClusterMap, Member
from kvmeta_server.cluster.seams import Maps
from kvmeta_server.refusal import Refused

ASK_S = 1.0
"""How long a request of a node waits that was just started, and does not answer yet at its address."""
_PAUSE_S = 0.1
_NONCE_BITS = 32


def life_of(start: int, nonce: int) -> int:
    """Return the number of a life: that of its start, which rises from one to the next, and a random one."""
    return start << _NONCE_BITS | nonce


def start_of(life: int) -> int:
    """Return the number of the start with which a life began."""
    return life >> _NONCE_BITS


class Parties:
    """This node among the others. `life`: see `life_of`."""

    def __init__(self, slot: int, store_id: bytes, life: int, maps: Maps) -> None:
        self._slot = slot
        self._store = store_id
        self.life = life
        self._maps = maps
        self._to: tuple[ClusterMap, dict[int, peer.Parties]] | None = None
        self._seen: ClusterMap | None = None
        self._may_ask: dict[int, str] = {}  # under that map
        self._lives: dict[int, tuple[int, float]] = {}  # the last known of others, and since when
        self.ask: Callable[[int], Awaitable[Any]] = _nobody
        """Asks a node how it is, at its address; UnavailableError where it does not answer."""
        self._looking: dict[int, asyncio.Task[None]] = {}
        self.twins: dict[int, str] = {}
        """Slots of which two processes live at once, and how that was seen."""
        self._twins_until: dict[int, int] = {}  # up to which start both are refused
        self.fenced = ""
        """Why this node takes no part any more; "" where it does."""
        self.when_fenced: list[Callable[[str], None]] = []
        """Called with that once it is so."""

    # As the one who asks

    def to(self, member: Member) -> peer.Parties:
        """Return between whom a request to a node is."""
        current = self._maps.current
        if self._to is None or self._to[0] is not current:
            self._to = current, {}
        made = self._to[1]
        if member.slot not in made:
            made[member.slot] = peer.Parties(
                cluster=current.cluster_id, to_slot=member.slot, to_store=bytes.fromhex(member.store_id),
                from_slot=self._slot, from_store=self._store, from_life=self.life,
                from_epoch=current.epoch, from_digest=current.digest,
            )  # fmt: skip
        return made[member.slot]

    def answered(self, slot: int, life: int, asked_at: float) -> None:
        """Note which life of a node answered a call that was begun at a time of the loop's."""
        known, since = self._lives.get(slot, (life, asked_at))
        if life != known and start_of(life) <= start_of(known) and asked_at >= since:
            self._saw_twins(slot, known, life)
        elif start_of(life) > start_of(known) or slot not in self._lives:
            self._lives[slot] = life, asyncio.get_running_loop().time()
            if start_of(life) > self._twins_until.get(slot, 0):
                self.twins.pop(slot, None)

    # As the one who is asked

    def check_receiver(self, parties: peer.Parties | peer.SeenRequest) -> None:
        """Raise Refused where a request is meant for another node than this."""
        self.check_alone()
        ours = self._maps.current
        if parties.cluster != ours.cluster_id:
            raise Refused(
                WRONG_NODE,
                f"this node is of cluster {ours.name!r}, {ours.cluster_id.hex()}, and the request for "
                f"another, {parties.cluster.hex()}; do two clusters share an address?",
            )
        if (parties.to_slot, parties.to_store) != (self._slot, self._store):
            raise Refused(
                WRONG_NODE,
                f"this is node {self._slot} with store {self._store.hex()}, and the request is for node "
                f"{parties.to_slot} with store {parties.to_store.hex()}; do two nodes share an address?",
            )

    def check_member(self, parties: peer.Parties) -> None:
        """Raise Refused where a request comes from no member, or from another history or past life of one."""
        ours, slot = self._maps.current, parties.from_slot
        if parties.from_epoch <= ours.epoch and not ours.descends_from(
            parties.from_epoch, parties.from_digest
        ):
            raise Refused(
                OTHER_HISTORY,
                f"the map of epoch {parties.from_epoch} that node {slot} works under is none that became the "
                f"one here, of epoch {ours.epoch}; kvmeta cluster recover shows what to do",
            )
        store = parties.from_store.hex()
        if self._stores(ours).get(slot) != store:
            raise Refused(NO_MEMBER, f"node {slot} with store {store} is no member of {ours.name!r}")
        start, lowest = start_of(parties.from_life), start_of(self._life_of(slot))
        told = parties.from_life != 0  # else it asks how this node is, and no more (`check_sender`)
        if told and (start < lowest or (slot in self.twins and start <= self._twins_until[slot])):
            again = f"node {slot} was started again since, with its own data or with a copy of it"
            raise Refused(OTHER_LIFE, self.twins.get(slot, again))

    async def check_sender(self, parties: peer.Parties) -> None:
        """Raise Refused as `check_member` does, and where nobody knows in which life a node asks.

        A life that is new here is believed once it answers at the node's address: while a copy of its data is
        used elsewhere, the one that does answer there gives it away.
        """
        self.check_member(parties)
        slot, life = parties.from_slot, parties.from_life
        if not life:
            raise Refused(UNPROVEN, f"node {slot} does not say in which life it asks")
        if self._life_of(slot) == life:
            return
        await self._ask(slot)
        self.check_member(parties)
        if self._life_of(slot) != life:
            self._saw_twins(slot, self._life_of(slot), life)
            raise Refused(OTHER_LIFE, self.twins[slot])

    def _stores(self, ours: ClusterMap) -> dict[int, str]:
        """Return the stores of those who may ask, by slot: members, and who left in good order.

        A drained node coordinates for its clients until it is stopped; so it may while its slot is nobody's.
        """
        if self._seen is not ours:
            left = {slot: store for slot, store in self._may_ask.items() if slot not in ours.by_slot}
            members = {each.slot: each.store_id for each in ours.members if each.state != "removed"}
            self._seen, self._may_ask = ours, left | members
        return self._may_ask

    def look_at(self, parties: peer.Parties) -> None:
        """Find out, without waiting for it, whether the life that a request comes from is the node's."""
        slot = parties.from_slot
        new = parties.from_life not in (0, self._life_of(slot))
        if new and slot not in self._looking:
            self._looking[slot] = asyncio.ensure_future(self._look_at(parties))

    async def stop(self) -> None:
        """Find out nothing more."""
        looking = list(self._looking.values())
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def _look_at(self, parties: peer.Parties) -> None:
        try:
            with suppress(UnavailableError):
                await self.check_sender(parties)
        finally:
            del self._looking[parties.from_slot]

    async def _ask(self, slot: int) -> None:
        """Ask a node how it is, which tells `answered`; for a moment again, for it has just started."""
        loop = asyncio.get_running_loop()
        end = loop.time() + ASK_S
        while True:
            try:
                await self.ask(slot)
                return
            except UnavailableError as error:
                if loop.time() > end:
                    raise Refused(UNPROVEN, f"node {slot} is not known in its new life: {error}") from None
            await asyncio.sleep(_PAUSE_S)

    def check_alone(self) -> None:
        """Raise Refused where this node takes no part any more."""
        if self.fenced:
            raise Refused(TWIN, self.fenced)

    def fence(self, reason: str) -> None:
        """Take no part any more."""
        if self.fenced:
            return
        self.fenced = f"{reason}; stop both, and start the one whose data is right"
        for told in self.when_fenced:
            told(self.fenced)

    def _life_of(self, slot: int) -> int:
        return self._lives.get(slot, (0, 0.0))[0]

    def _saw_twins(self, slot: int, one: int, other: int) -> None:
        self._twins_until[slot] = max(start_of(one), start_of(other))
        self.twins[slot] = (
            f"node {slot} lives twice, as {one:x} and as {other:x}: its data directory was copied"
        )


async def _nobody(slot: int) -> None:
    raise UnavailableError(f"node {slot} is not asked yet")


def life_told(reply: Any) -> int:
    """Return the life that a node's answer tells of; 0 where it tells of none."""
    return int(getattr(reply, "life", 0))
