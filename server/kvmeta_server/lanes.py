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
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from kvmeta.errors import KvmetaError
from kvmeta.protocol.status import OVERLOADED
from kvmeta_server.refusal import Refused

Answer = Callable[[bytes], bytes]
T = TypeVar("T")


class _Work:
    """A call that waits for a thread. It lets go of its bytes as soon as nobody waits for it."""

    __slots__ = ("answer", "future", "request")

    def __init__(self, answer: Answer, request: bytes, future: asyncio.Future[bytes]) -> None:
        self.answer = answer
        self.request: bytes | None = request
        self.future = future
        future.add_done_callback(self._let_go)

    def _let_go(self, _: asyncio.Future[bytes]) -> None:
        self.request = None


class Lane:
    """A queue of calls and the threads that answer them, for one event loop."""

    def __init__(self, name: str, threads: int, waiting_max: int = 1 << 20) -> None:
        self._name = name
        self._waiting_max = waiting_max
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"kvmeta-{name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def answer(self, answer: Answer, request: bytes) -> asyncio.Future[bytes]:
        """Return the future response; cancelling it before a thread has begun spares the work."""
        if self._queue.qsize() >= self._waiting_max:  # also of calls whose callers are gone
            raise Refused(OVERLOADED, f"{self._waiting_max} calls wait for a {self._name} thread")
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._queue.put(_Work(answer, request, future))
        return future

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Return the future result of `work`, done by a thread of the lane."""
        future: asyncio.Future[Any] = self.answer(lambda _: work(), b"-")  # type: ignore[arg-type,return-value]
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
            request = work.request
            if request is not None and not work.future.cancelled():
                self._answer(work, request)
            del work, request  # a waiting thread shall hold no message

    def _answer(self, work: _Work, request: bytes) -> None:
        result: bytes = b""
        error: BaseException | None = None
        try:
            result = work.answer(request)
        except KvmetaError as raised:
            error = raised.with_traceback(None)  # whose frames would keep the request's bytes, in a circle
            error.__context__ = None
        except BaseException as raised:  # noqa: BLE001 - handed to the call, which tells it
            plain = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
            error = raised if plain else RuntimeError(repr(raised))  # a library's panic
        with suppress(RuntimeError):  # the server has ended meanwhile
            self._loop.call_soon_threadsafe(_settle, work.future, result, error)


@dataclass(frozen=True)
class Lanes:
    """The lanes of a server."""

    lookups: Lane
    writes: Lane
    others: Lane

    def close(self, patience_s: float) -> None:
        """End the threads of all."""
        for lane in (self.lookups, self.writes, self.others):
            lane.close(patience_s)


def _settle(future: asyncio.Future[bytes], result: bytes, error: BaseException | None) -> None:
    if future.done():  # the caller is gone
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
