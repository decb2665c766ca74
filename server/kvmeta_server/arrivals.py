"""Arrivals: how many messages a server reads from the network at once. A call waits for its turn first.

gRPC takes a message apart (and unpacks it) when it is asked to, whole, and holds what has come of it however
long the rest takes. So only a few are asked for at a time: that bounds what half-sent and blown-up messages
cost.

    call ── turn? ──> read ──> admission …        a free slot, and a share left to the connection
              └─ waits: connections in turn; beyond all bounds it is refused

A message usually lies there when it is asked for. One that does not come soon gives its slot up as soon as
somebody waits, so senders that dawdle shut nobody out.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable

from kvmeta.protocol.status import OVERLOADED
from kvmeta_server.admission import SHARE_OF_ONE
from kvmeta_server.config import Limits
from kvmeta_server.refusal import Refused

AT_ONCE = 16
"""Messages read at once: of 4 MiB each, 64 MiB, and as much for their copies."""
LOOK_S = 0.02
LOOKS = 3
"""A message that is not there at so many looks, so far apart, while others wait gives its slot up. Looks, not
seconds: in a loop that was held up, messages that have come are taken between two of them."""


class _Reading:
    """A call that reads its message."""

    __slots__ = ("looks", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.looks = 0


class Arrivals:
    """The slots for messages; used from one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._waiting_max = limits.calls_max
        self._reading: set[_Reading] = set()
        self._taken = 0  # slots held
        self._of: Counter[str] = Counter()  # by connection
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # connections in their turn
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    async def message(self, peer: str, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the message that `read` brings, in its turn; raise Refused where it cannot have one."""
        if self._taken < AT_ONCE and self._of[peer] < AT_ONCE // SHARE_OF_ONE:
            self._take(peer)
        else:
            await self._turn(peer)
        task = asyncio.current_task()
        assert task is not None
        reading = _Reading(task)
        self._reading.add(reading)
        try:
            return await read()
        except asyncio.CancelledError:
            if reading.looks < LOOKS or task.uncancel():
                raise
            raise Refused(
                OVERLOADED, "the message was too slow to come, and others wait; send it again"
            ) from None
        finally:
            self._reading.discard(reading)
            self._release(peer)

    async def _turn(self, peer: str) -> None:
        """Wait for a slot, which is then held."""
        queue = self._waiting.get(peer, ())
        if self._count >= self._waiting_max or len(queue) >= self._waiting_max // SHARE_OF_ONE:
            raise Refused(OVERLOADED, f"{self._count} calls wait to send their messages; try again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, deque()).append(turn)
        self._count += 1
        self._hurry()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came and is not wanted any more
                self._release(peer)
            raise

    def _take(self, peer: str) -> None:
        self._taken += 1
        self._of[peer] += 1

    def _release(self, peer: str) -> None:
        self._taken -= 1
        self._of[peer] -= 1
        if not self._of[peer]:
            del self._of[peer]
        self._call_next()

    def _call_next(self) -> None:
        """Give free slots to those who wait, one connection after the other."""
        for peer in list(self._waiting):
            if self._taken >= AT_ONCE:
                return
            if self._of[peer] >= AT_ONCE // SHARE_OF_ONE:
                continue
            queue = self._waiting.pop(peer)
            while queue:
                turn = queue.popleft()
                self._count -= 1
                if not turn.done():
                    self._take(peer)
                    turn.set_result(None)
                    break
            if queue:
                self._waiting[peer] = queue  # behind the others

    def _hurry(self) -> None:
        """See to it that those who dawdle give their slots up."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        for reading in self._reading:
            reading.looks += 1
            if reading.looks == LOOKS:
                reading.task.cancel()
        self._hurry()
