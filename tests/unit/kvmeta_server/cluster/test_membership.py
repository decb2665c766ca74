"""Membership over a simulated etcd: what is told to have been seen is what the node works under."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from kvmeta.errors import UnavailableError
from kvmeta_server.cluster.cluster_map import ClusterMap, Member, found
from kvmeta_server.cluster.membership import LEASE_S, Membership, Writes, sign_of_life
from kvmeta_server.cluster.seams import Changed, Compacted, Pace
from kvmeta_server.cluster.tables import Tables
from kvmeta_server.simulator.authority import KeySpace, SimulatedEtcd, Snapshot
from kvmeta_server.simulator.loop import Process, SimulatedLoop
from kvmeta_server.simulator.network import Network

ADOPTION_S = 0.5
TABLES = "/kvmeta/test/tables"
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
        lives, revision_seen = self._space.lives, False
        while True:
            if not revision_seen:
                revision_seen = True
                yield []
            await asyncio.sleep(0.0005)
            if self._space.lives != lives:
                raise Compacted
            news = [change for change in self._space.history if change.revision > revision]
            if news:
                revision = news[-1].revision
                yield news


class Told:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.faults: list[BaseException] = []
        self.warnings: list[str] = []

    def info(self, event: str, **fields: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None:
        self.warnings.append(f"{event}: {fields.get('reason')}")

    def fault(self, where: str, error: BaseException) -> None:
        self.faults.append(error)


async def member(space: KeySpace, log: Told, *, slot: int = 0, takes_s: float = ADOPTION_S) -> Membership:
    """Return a member that follows, and takes half a second to work under a new map."""

    async def adopt(cluster_map: ClusterMap) -> None:
        await asyncio.sleep(takes_s)

    etcd = Prompt(space, Network(random.Random(1)), Process(f"n{slot}"))
    made = Membership(etcd, "test", adopt, log, Pace())
    await made.found(FOUNDED)
    await made.load()
    made.start(slot, bytes(16), 1 + slot, log.faults.append)  # type: ignore[arg-type]
    return made


def test_a_node_holds_the_new_map_after_changing_it() -> None:
    async def work() -> None:
        log = Told()
        membership = await member(a_space(), log)
        for weight in range(2, 22):
            changed = await membership.change_map(heavier(weight))
            assert membership.current.epoch == changed.epoch
        assert not log.faults
        await membership.stop()

    run(work())


def a_space() -> KeySpace:
    return KeySpace(asyncio.get_running_loop().time)


def heavier(weight: float) -> Callable[[ClusterMap], ClusterMap]:
    return lambda held: held.with_member("n0", weight=weight)


def with_dataset(name: str) -> Callable[[Tables], tuple[Tables, Writes]]:
    return lambda tables: (tables.with_dataset(name, ttl_s=None, bottom_filter=False), {})


def test_an_etcd_that_was_set_back_is_not_believed() -> None:
    """Behind, of another history, emptied, or with older tables beside the same map."""

    async def work() -> None:
        space, log = a_space(), Told()
        membership = await member(space, log, takes_s=0)
        await membership.change_map(heavier(2))
        await membership.change_tables(with_dataset("first"))
        before = space.snapshot()
        await membership.change_tables(with_dataset("second"))
        behind = space.snapshot()
        await membership.change_map(heavier(3))
        epoch, serial = membership.current.epoch, membership.tables.serial  # type: ignore[union-attr]

        async def refused(what: str) -> None:
            await asyncio.sleep(3)
            assert what in membership.refusal
            assert (membership.current.epoch, membership.tables.serial) == (epoch, serial)  # type: ignore[union-attr]
            assert not membership.lease_left_s()
            with pytest.raises(UnavailableError, match="cluster recover"):
                await membership.change_map(heavier(9))
            with pytest.raises(UnavailableError, match="cluster recover"):
                await membership.change_tables(with_dataset("third"))
            with pytest.raises(UnavailableError, match="cluster recover"):
                await membership.tables_now()
            assert not await membership.is_driver()

        now = space.snapshot()
        space.restore(behind)
        await refused("an older map")
        stranger = await member(
            space, Told(), slot=1, takes_s=0
        )  # it knows nothing newer, and goes on from there
        for weight in (4, 5, 6):
            await stranger.change_map(heavier(weight))
        await refused("a map of another history")
        space.restore(None)
        await refused("no map")
        space.restore(now)
        await asyncio.sleep(3)
        assert not membership.refusal
        assert await membership.change_map(heavier(7))
        await membership.change_tables(with_dataset("third"))
        epoch, serial = membership.current.epoch, membership.tables.serial  # type: ignore[union-attr]
        space.restore(Snapshot(before.revision, {**space.values, TABLES: before.values[TABLES]}))
        await refused("tables")
        assert not log.faults
        for each in (membership, stranger):
            await each.stop()

    run(work())


def test_what_is_remembered_is_held_against_etcd_at_the_start() -> None:
    async def work() -> None:
        space, log = a_space(), Told()
        membership = await member(space, log, takes_s=0)
        older = space.snapshot()
        await membership.change_tables(with_dataset("first"))
        again = Membership(
            Prompt(space, Network(random.Random(1)), Process("n0")), "test", never, log, Pace()
        )
        again.belief.go_on_with(membership.current, membership.tables)
        space.restore(older)
        await again.load()
        assert "tables" in again.refusal
        assert again.tables == membership.tables
        await membership.stop()

    run(work())


def test_two_lives_of_one_node_are_noticed() -> None:
    """Whoever finds another life in its place says so to both."""

    async def work() -> None:
        space, told = a_space(), (Told(), Told())
        one, other = [await member(space, log, takes_s=0) for log in told]
        other._sign = sign_of_life(bytes(16), 7)
        await asyncio.sleep(LEASE_S + 10)
        assert all("lives twice" in str(log.faults[0]) for log in told)
        await one.stop()
        await other.stop()

    run(work())


def test_a_restarted_node_takes_the_place_of_its_last_life() -> None:
    async def work() -> None:
        space, told = a_space(), (Told(), Told())
        one = await member(space, told[0], takes_s=0)
        await asyncio.sleep(2)
        for task in one._tasks:  # as if it was killed: its lease lasts
            task.cancel()
        again = await member(space, told[1], takes_s=0)
        again._sign = sign_of_life(bytes(16), 7)
        await asyncio.sleep(LEASE_S + 10)
        assert space.values["/kvmeta/test/live/0"].data == again._sign
        assert not told[1].faults
        await again.stop()

    run(work())


async def never(cluster_map: ClusterMap) -> None:
    raise AssertionError(cluster_map)
