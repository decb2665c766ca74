"""An event loop whose time is simulated: it jumps to the next timer, so an hour of waiting takes no time.

Every task belongs to a `Process`, by its context. A dead one's calls are never made, and nothing of it is
cleaned up, as after kill -9. Timers are where a process touches the world (the network, lanes and the
authority answer by timers, too), so there it is paused: a paused process's timers wait.

A seed is some ten thousand turns of this loop, so it is a loop of its own: a heap of timers and a queue,
without the files, threads and signals of asyncio's.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

from kvmeta.errors import KvmetaError

_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Process:
    """What dies or stalls as one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self._stalled: list[Handle] = []
        self.when_killed: dict[Callable[[], None], None] = {}  # a set that keeps its order
        """What others notice of its end: a connection that is reset, say."""

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this process."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call back in this process: now, or where it is paused when it goes on."""
        handle = Handle(callback, args, self.context, 0.0)
        if self.admit(handle):
            handle.run()

    def kill(self) -> None:
        """End without a word."""
        self.alive = False
        self._stalled.clear()
        for notice in list(self.when_killed):
            notice()
        self.when_killed.clear()

    def pause(self) -> None:
        """Stand still."""
        self.paused = True

    def resume(self) -> None:
        """Go on; what should have happened meanwhile happens now."""
        self.paused = False
        stalled, self._stalled = self._stalled, []
        for handle in stalled:
            if self.admit(handle):
                handle.run()

    def admit(self, handle: Handle) -> bool:
        """Return whether a timer of this process may fire now; where it is paused, it fires later."""
        if self.alive and self.paused:
            self._stalled.append(handle)
        return self.alive and not self.paused


class Handle:
    """A call that is to be made; what asyncio knows of a handle."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context, when: float
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = context
        self._cancelled = False
        self._when = when

    def cancel(self) -> None:
        """Do not make the call."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Return whether the call is not to be made."""
        return self._cancelled

    def when(self) -> float:
        """Return the time at which a timer fires."""
        return self._when

    def run(self) -> None:
        """Make the call."""
        if not self._cancelled:
            self._context.run(self._callback, *self._args)


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Process | None, Handle]] = []
        self._timers_made = 0
        self._tasks: list[asyncio.Task[Any]] = []  # held, so that none is collected, and ends, on its own

    def time(self) -> float:
        """Return the simulated time, in seconds."""
        return self.now

    def run_until_complete(self, future: Any) -> Any:
        """Run until a task is done; return its result."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=lambda _: None)  # one of a dead process is not ended in order
        asyncio._set_running_loop(self)
        try:
            self._run(future.done)
        finally:
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
        return future.result()

    def _run(self, done: Callable[[], bool]) -> None:
        """Make the calls that are due, one by one; where there is none, time passes until there is."""
        ready, timers = self._ready, self._timers
        while not done():
            if ready:
                handle = ready.popleft()
                process = handle._context.get(_PROCESS)
                if process is not None and not process.alive:
                    continue
            else:
                if not timers:
                    raise RuntimeError("nothing will ever happen: every task waits for another")
                when, _, process, handle = heappop(timers)
                if handle._cancelled:
                    continue
                self.now = max(self.now, when)
                if process is not None and not process.admit(handle):
                    continue
            if not handle._cancelled:
                handle._context.run(handle._callback, *handle._args)

    # What tasks, futures and coroutines ask of a loop

    def call_soon(  # type: ignore[override]  # asyncio's is variadic in its types
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Any:
        """Call back as soon as what is due before is done."""
        handle = Handle(callback, args, context or contextvars.copy_context(), self.now)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Any:
        """Call back after a while."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Any:
        """Call back at a time, if the process to which the context belongs lives then."""
        if context is None:
            context = contextvars.copy_context()
        handle = Handle(callback, args, context, when)
        self._timers_made += 1  # timers of one time fire in the order in which they were made
        heappush(self._timers, (when, self._timers_made, context.get(_PROCESS), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> asyncio.Task[Any]:
        """Return a task of this loop."""
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        """Return that nothing is looked at more closely."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Do nothing: `fault` finds what tasks raised."""

    def fault(self) -> BaseException | None:
        """Return what a task raised that is no typed error: a fault of the program, whoever took it."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                error = task.exception()
                if error is not None and not isinstance(error, KvmetaError):
                    return error
        self._tasks = [task for task in self._tasks if not task.done()]
        return None

    def end(self) -> None:
        """Close every task, wherever it waits."""
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as it was meant
            if not task.done():
                with suppress(RuntimeError, asyncio.CancelledError):  # it would not end; nobody asks it again
                    task.get_coro().close()
        self._tasks.clear()
        self._ready.clear()
        self._timers.clear()
        self.close()
