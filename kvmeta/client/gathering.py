"""Gathering: single gets that are under way at once become one lookup.

The first get of a loop's turn schedules a batch for the end of the turn; while as many batches are under way
as keep a server busy, later gets gather for the next one. A lone get waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits
from kvmeta.ids import ID

BATCHES_MAX = 2
"""Lookups under way at once: one is answered while the next is on its way."""


class Gathering:
    """The gets of one dataset on one event loop. `lookup` is asked for up to `rows_max` IDs at a time."""

    def __init__(self, lookup: Callable[[NDArray[np.void]], Awaitable[Hits]], rows_max: int) -> None:
        self._lookup = lookup
        self._rows_max = rows_max
        self._waiting: deque[tuple[bytes, asyncio.Future[tuple[Hits, int]]]] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def ask(self, one_id: NDArray[np.void]) -> tuple[Hits, int]:
        """Return the answer of the batch that `one_id` (ID[1]) travelled in, and its row there."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Hits, int]] = loop.create_future()
        self._waiting.append((one_id.tobytes(), answer))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._send)
        return await answer

    def _send(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._batches) < BATCHES_MAX:
            count = min(len(self._waiting), self._rows_max)
            batch = [self._waiting.popleft() for _ in range(count)]
            task = asyncio.get_running_loop().create_task(self._answer(batch))
            self._batches.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._send()

    async def _answer(self, batch: list[tuple[bytes, asyncio.Future[tuple[Hits, int]]]]) -> None:
        try:
            hits = await self._lookup(np.frombuffer(b"".join([raw for raw, _ in batch]), ID))
        except asyncio.CancelledError:
            for _, answer in batch:
                answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - told to every get of the batch
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for row, (_, answer) in enumerate(batch):
            if not answer.done():  # its caller may have been cancelled
                answer.set_result((hits, row))
