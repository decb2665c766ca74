"""Between whom a request is: whoever is asked refuses to be another, and refuses whom it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvmeta.errors import UnavailableError
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.cluster_map import ClusterMap, Member, found
from kvmeta_server.cluster.parties import Parties, life_of
from kvmeta_server.refusal import Refused

STORES = [bytes([slot]) * 16 for slot in range(3)]
LIFE = life_of(100, 7)


def a_map() -> ClusterMap:
    members = [Member(0, f"n{slot}", f"at{slot}", store_id=STORES[slot].hex()) for slot in range(3)]
    made = found("test", bytes(16), members[0], partitions=16)
    for member in members[1:]:
        made = made.joined(member)
    return made


class Scene:
    """Node 1, which is asked; node 0 lives in `life` at its address, or does not answer (None)."""

    def __init__(self) -> None:
        self.maps: Any = SimpleNamespace(current=a_map())
        self.asked = Parties(1, STORES[1], life_of(1, 1), self.maps)
        self.asked.ask = self._ask
        self.life: int | None = LIFE

    async def _ask(self, slot: int) -> None:
        if self.life is None:
            raise UnavailableError("no answer")
        self.asked.answered(slot, self.life, asyncio.get_running_loop().time())

    def request(self, **fields: Any) -> peer.Parties:
        current = self.maps.current
        given = {
            "cluster": current.cluster_id, "to_slot": 1, "to_store": STORES[1], "from_slot": 0,
            "from_store": STORES[0], "from_epoch": current.epoch, "from_digest": current.digest,
            "from_life": LIFE,
        }  # fmt: skip
        return peer.Parties(**{**given, **fields})

    async def arrives(self, **fields: Any) -> None:
        request = self.request(**fields)
        self.asked.check_receiver(request)
        await self.asked.check_sender(request)


def run(work: Callable[[Scene], Awaitable[None]]) -> Scene:
    scene = Scene()
    asyncio.run(work(scene))  # type: ignore[arg-type]
    return scene


async def refused(scene: Scene, reason: str, **fields: Any) -> None:
    with pytest.raises(Refused) as told:
        await scene.arrives(**fields)
    assert told.value.reason == reason


def test_a_request_for_another_or_from_a_stranger_is_refused() -> None:
    async def work(scene: Scene) -> None:
        await scene.arrives()
        await refused(scene, "WRONG_NODE", cluster=b"x" * 16)
        await refused(scene, "WRONG_NODE", to_slot=2)
        await refused(scene, "WRONG_NODE", to_store=STORES[2])
        await refused(scene, "NO_MEMBER", from_slot=7)
        await refused(scene, "NO_MEMBER", from_store=STORES[2])
        await refused(scene, "OTHER_HISTORY", from_digest=1)
        await refused(scene, "UNPROVEN", from_life=0)

    run(work)


def test_who_left_in_good_order_may_ask_and_who_was_removed_may_not() -> None:
    async def work(scene: Scene) -> None:
        first = scene.maps.current
        await scene.arrives()
        scene.maps.current = replace(first, members=first.members[1:])
        await scene.arrives()
        scene.maps.current = replace(first, members=(replace(first.members[0], state="removed"),))
        await refused(scene, "NO_MEMBER")
        scene.maps.current = replace(first, members=first.members[1:])
        await refused(scene, "NO_MEMBER")

    run(work)


def test_a_new_life_is_believed_once_it_answers_at_its_address() -> None:
    async def work(scene: Scene) -> None:
        await scene.arrives()
        scene.life = None
        later = life_of(101, 3)
        await refused(scene, "UNPROVEN", from_life=later)
        scene.life = later
        await scene.arrives(from_life=later)
        await refused(scene, "OTHER_LIFE")  # a late request of the life before

    run(work)


def test_a_copy_gives_itself_away_while_the_node_answers() -> None:
    async def work(scene: Scene) -> None:
        await scene.arrives()
        await refused(scene, "OTHER_LIFE", from_life=life_of(105, 3))
        assert 0 in scene.asked.twins
        await refused(scene, "OTHER_LIFE")
        scene.life = life_of(110, 1)  # both were stopped, and one was started
        await scene.arrives(from_life=scene.life)
        assert not scene.asked.twins

    run(work)


def test_a_fenced_node_answers_nobody() -> None:
    told: list[str] = []

    async def work(scene: Scene) -> None:
        scene.asked.when_fenced.append(told.append)
        for reason in ("it lives twice", "again"):
            scene.asked.fence(reason)
        await refused(scene, "TWIN")

    run(work)
    assert len(told) == 1
    assert told[0].startswith("it lives twice")
