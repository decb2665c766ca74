"""Lanes: threads that answer calls, so that the event loop never waits for the engine.

The engine's kernels release the GIL, so threads of one process use all cores. Lookups have as many threads as
there are cores; writes have more, because they wait for the disk together: a group of them shares one fsync.
A lookup never waits behind a write, nor either behind a scan or a flush.

This is less than a ThreadPoolExecutor: one queue, one hand-over each way. It is quicker by 80 us a call,
which at 4,096 IDs a call is a tenth of all time (docs/decisions/0014).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

Answer = Callable[[bytes], bytes]
_Work = tuple[Answer, bytes, "asyncio.Future[bytes]"]


class Lane:
    """A queue of calls and the threads that answer them, for one event loop."""

    def __init__(self, name: str, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"kvmeta-{name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def answer(self, answer: Answer, request: bytes) -> asyncio.Future[bytes]:
        """Return the future response; cancelling it before a thread has begun spares the work."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._queue.put((answer, request, future))
        return future

    def close(self, patience_s: float = 10.0) -> None:
        """End the threads once the queue is empty; one that is stuck is left behind."""
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            answer, request, future = work
            if future.cancelled():
                continue
            result: Any = None
            error: BaseException | None = None
            try:
                result = answer(request)
            except Exception as raised:  # noqa: BLE001 - handed to the call, which tells it
                error = raised
            with suppress(RuntimeError):  # the server has ended meanwhile
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            del work, answer, request, future, result, error  # a waiting thread shall hold no message


def _settle(future: asyncio.Future[bytes], result: bytes, error: BaseException | None) -> None:
    if future.done():  # the caller is gone
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
