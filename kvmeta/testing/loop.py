"""An event loop whose time is simulated: it jumps to the next timer, so an hour of waiting takes no time.

Every task belongs to a `Process`, by its context. Timers are where a process touches the world (the network,
lanes and the authority answer by timers, too), so there it is paused and killed: a paused process's timers
wait, a dead one's never fire, and nothing of it is cleaned up, as after kill -9.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import suppress
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
        self._stalled: list[Callable[[], None]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this process."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def kill(self) -> None:
        """End without a word."""
        self.alive = False
        self._stalled.clear()

    def pause(self) -> None:
        """Stand still."""
        self.paused = True

    def resume(self) -> None:
        """Go on; what should have happened meanwhile happens now."""
        self.paused = False
        stalled, self._stalled = self._stalled, []
        for fire in stalled:
            fire()

    def admit(self, fire: Callable[[], None]) -> bool:
        """Return whether a timer of this process may fire now; where it is paused, it fires later."""
        if self.alive and self.paused:
            self._stalled.append(fire)
        return self.alive and not self.paused


class _NoSelector:
    """Stands in for the selector that the base loop waits in: waiting makes time pass."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen: every task waits for another")
        self._loop.now += timeout
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """The loop."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9
        self._tasks: list[asyncio.Task[Any]] = []  # held, so that none is collected, and ends, on its own
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # which has no name for its type

    def time(self) -> float:
        """Return the simulated time, in seconds."""
        return self.now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Call back at a time, if the process to which the context belongs lives then."""
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)

        def fire() -> None:
            if not handle.cancelled() and process.admit(fire):
                callback(*args)

        handle = super().call_at(when, fire, context=context)
        return handle

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
        """Close the loop and every task, wherever it waits."""
        self.set_exception_handler(lambda loop, context: None)
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as it was meant
            if not task.done():
                with suppress(RuntimeError, asyncio.CancelledError):  # it would not end; nobody asks it again
                    task.get_coro().close()
        self._tasks.clear()
        self.close()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **named: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **named)
        self._tasks.append(task)
        return task

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Do nothing: a generator of a dead process is not ended in order."""

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: there are no files to wait for."""
