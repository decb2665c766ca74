"""Single gets that become batches."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

import kvmeta
from kvmeta.batch import Hits
from kvmeta.client.gathering import BATCHES_MAX, Gathering

IDS = kvmeta.ids_from_ints(np.arange(100, dtype=np.uint64))


class Server:
    """Answers lookups when it is told to."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[NDArray[np.void]] = []
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def lookup(self, ids: NDArray[np.void]) -> Hits:
        self.batches.append(ids)
        await self.go.wait()
        n = len(ids)
        locations = np.zeros(n, kvmeta.LOCATION)
        locations["offset"] = ids.view(">u8").reshape(-1, 2)[:, 1]
        return Hits(np.ones(n, bool), locations, np.ones(n, np.uint64), np.zeros(n, bool))


async def offset(gathering: Gathering, i: int) -> int:
    hits, row = await gathering.ask(IDS[i : i + 1])
    return int(hits.locations["offset"][row])


def test_gets_of_one_event_loop_turn_share_a_batch() -> None:
    async def work() -> None:
        server = Server()
        gathering = Gathering(server.lookup, 1000)
        got = await asyncio.gather(*[offset(gathering, i) for i in range(100)])
        assert got == list(range(100))
        assert [len(batch) for batch in server.batches] == [100]

    asyncio.run(work())


def test_a_batch_of_gets_respects_the_row_limit() -> None:
    async def work() -> None:
        server = Server()
        gathering = Gathering(server.lookup, 30)
        assert await asyncio.gather(*[offset(gathering, i) for i in range(100)]) == list(range(100))
        assert [len(batch) for batch in server.batches] == [30, 30, 30, 10]

    asyncio.run(work())


def test_gets_gather_while_enough_batches_are_under_way() -> None:
    async def work() -> None:
        server = Server(held=True)
        gathering = Gathering(server.lookup, 1000)
        tasks = []
        for i in range(10):
            tasks.append(asyncio.create_task(offset(gathering, i)))
            await asyncio.sleep(0.01)
        assert [len(batch) for batch in server.batches] == [1] * BATCHES_MAX
        server.go.set()
        assert await asyncio.gather(*tasks) == list(range(10))
        assert [len(batch) for batch in server.batches] == [1] * BATCHES_MAX + [10 - BATCHES_MAX]

    asyncio.run(work())


def test_an_error_reaches_every_get_of_its_batch_but_no_later_one() -> None:
    async def work() -> None:
        fails = True

        async def lookup(ids: NDArray[np.void]) -> Hits:
            if fails:
                raise kvmeta.UnavailableError("gone")
            return await Server().lookup(ids)

        gathering = Gathering(lookup, 1000)
        ends = await asyncio.gather(*[offset(gathering, i) for i in range(5)], return_exceptions=True)
        assert all(isinstance(end, kvmeta.UnavailableError) for end in ends)
        fails = False
        assert await offset(gathering, 3) == 3

    asyncio.run(work())


def test_a_cancelled_get_does_not_disturb_the_others() -> None:
    async def work() -> None:
        server = Server(held=True)
        gathering = Gathering(server.lookup, 1000)
        tasks = [asyncio.create_task(offset(gathering, i)) for i in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.sleep(0)
        server.go.set()
        assert [await tasks[0], await tasks[2]] == [0, 2]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    asyncio.run(work())
