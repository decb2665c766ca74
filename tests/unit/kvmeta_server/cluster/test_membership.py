"""Membership over a simulated etcd: what is told to have been seen is what the node works under."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from kvmeta_server.cluster.cluster_map import ClusterMap, Member, found
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.seams import Changed, Pace
from kvmeta_server.simulator.authority import KeySpace, SimulatedEtcd
from kvmeta_server.simulator.loop import Process, SimulatedLoop
from kvmeta_server.simulator.network import Network

ADOPTION_S = 0.5
FOUNDED = found("test", bytes(16), Member(0, "n0", "n0:1"), partitions=16)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(loop.create_task(work))
    finally:
        loop.end()


class Prompt(SimulatedEtcd):
    """An etcd whose watch brings a change before the answer to who made it."""

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Changed]]:
        while True:
            await asyncio.sleep(0.0005)
            news = [change for change in self._space.history if change.revision > revision]
            if news:
                revision = news[-1].revision
                yield news


async def member(space: KeySpace, faults: list[Exception]) -> Membership:
    """Return a member that follows, and takes half a second to work under a new map."""

    async def adopt(cluster_map: ClusterMap) -> None:
        await asyncio.sleep(ADOPTION_S)

    etcd = Prompt(space, Network(random.Random(1)), Process("n0"))
    made = Membership(etcd, "test", adopt, faults.append, Pace())
    await made.change_map(lambda held: held, founded=FOUNDED)
    await made.load()
    made.start(0)
    return made


def test_a_node_holds_the_new_map_after_changing_it() -> None:
    async def work() -> None:
        faults: list[Exception] = []
        membership = await member(KeySpace(asyncio.get_running_loop().time), faults)
        for weight in range(2, 22):
            changed = await membership.change_map(
                lambda held, weight=weight: held.with_member("n0", weight=weight)
            )
            assert membership.current.epoch == changed.epoch
        assert not faults
        await membership.stop()

    run(work())
