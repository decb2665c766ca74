"""Whose message is read, who waits, and who gives up; on a loop, without gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvmeta_server import arrivals
from kvmeta_server.admission import SHARE_OF_ONE
from kvmeta_server.arrivals import AT_ONCE, Arrivals
from kvmeta_server.config import Limits
from kvmeta_server.refusal import Refused
from tests.patience import HANG_S

SHARE = AT_ONCE // SHARE_OF_ONE


class Senders:
    """Messages that come when they are told to."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.arrivals = Arrivals(limits or Limits())
        self.reading: list[str] = []
        self.go = asyncio.Event()

    def call(self, peer: str, *, at_once: bool = False) -> asyncio.Task[bytes]:
        read = self._quick if at_once else self._slow(peer)
        return asyncio.ensure_future(self.arrivals.message(peer, read))

    async def _quick(self) -> bytes:
        return b"quick"

    def _slow(self, peer: str) -> Callable[[], Awaitable[bytes]]:
        async def read() -> bytes:
            self.reading.append(peer)
            try:
                await self.go.wait()
            finally:
                self.reading.remove(peer)
            return b"slow"

        return read


def on_a_loop(work: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(work(), HANG_S))  # type: ignore[arg-type]


async def moments() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "LOOK_S", 3600)


def test_messages_read_at_once_are_limited_in_total_and_per_connection() -> None:
    async def work() -> None:
        senders = Senders()
        mine = [senders.call("greedy") for _ in range(3 * SHARE)]
        others = [senders.call(f"peer-{i}") for i in range(2 * AT_ONCE)]
        await moments()
        assert len(senders.reading) == AT_ONCE
        assert senders.reading.count("greedy") == SHARE
        senders.go.set()
        assert set(await asyncio.gather(*mine, *others)) == {b"slow"}

    on_a_loop(work)


def test_connections_take_turns_even_if_one_has_many_calls() -> None:
    async def work() -> None:
        senders = Senders()
        holders = [senders.call(f"holder-{i}") for i in range(AT_ONCE)]
        await moments()
        greedy = [senders.call("greedy") for _ in range(100)]
        modest = senders.call("modest")
        await moments()
        holders[0].cancel()
        holders[1].cancel()
        await moments()
        assert senders.reading[-2:] == ["greedy", "modest"]
        senders.go.set()
        await asyncio.gather(*greedy, modest)

    on_a_loop(work)


def test_a_stalled_message_gives_up_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "LOOK_S", 0.001)

    async def work() -> None:
        senders = Senders()
        dawdlers = [senders.call(f"dawdler-{i}") for i in range(AT_ONCE)]
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in dawdlers), "nobody waits"
        assert await senders.call("quick", at_once=True) == b"quick"
        ends = await asyncio.gather(*dawdlers, return_exceptions=True)
        assert all(isinstance(end, Refused) and "too slow" in str(end) for end in ends)
        assert not senders.reading
        assert await senders.call("quick", at_once=True) == b"quick"

    on_a_loop(work)


def test_a_call_beyond_the_waiting_limit_is_refused_at_once() -> None:
    async def work() -> None:
        senders = Senders(Limits(calls_max=8))
        held = [senders.call(f"peer-{i}") for i in range(AT_ONCE + 8)]
        await moments()
        with pytest.raises(Refused, match="8 calls wait"):
            await senders.call("late", at_once=True)
        for each in held:
            each.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        assert await senders.call("later", at_once=True) == b"quick"

    on_a_loop(work)


def test_a_call_cancelled_while_waiting_costs_no_slot() -> None:
    async def work() -> None:
        senders = Senders()
        held = [senders.call(f"peer-{i}") for i in range(AT_ONCE)]
        await moments()
        waiting = [senders.call("gone") for _ in range(5)]
        await moments()
        for each in (*waiting, *held):
            each.cancel()
        ends = await asyncio.gather(*waiting, *held, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        again = [senders.call(f"peer-{i}") for i in range(AT_ONCE)]
        await moments()
        assert len(senders.reading) == AT_ONCE
        senders.go.set()
        await asyncio.gather(*again)

    on_a_loop(work)


def test_no_slot_is_lost_to_finished_cancelled_or_stalled_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "LOOK_S", 0.0005)
    pick = random.Random(7)

    async def read() -> bytes:
        await asyncio.sleep(pick.choice((0, 0, 0.001, 3600)))
        return b"read"

    async def work() -> None:
        gate = Arrivals(Limits())
        calls = []
        for _ in range(1500):
            calls.append(asyncio.ensure_future(gate.message(f"peer-{pick.randrange(12)}", read)))
            if pick.random() < 0.2:
                pick.choice(calls).cancel()
            if pick.random() < 0.1:
                await asyncio.sleep(0.001)
        senders = Senders()
        senders.arrivals = gate
        for i in range(2 * AT_ONCE):  # all those who dawdle make way
            assert await senders.call(f"late-{i}", at_once=True) == b"quick"
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        held = [senders.call(f"peer-{i}") for i in range(AT_ONCE)]
        await moments()
        assert len(senders.reading) == AT_ONCE
        senders.go.set()
        await asyncio.gather(*held)

    on_a_loop(work)
