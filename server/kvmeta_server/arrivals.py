"""Arrivals: how many messages a server reads from the network at once. A call waits for its turn first.

gRPC takes a message apart (and unpacks it) when it is asked to, whole, and holds what has come of it however
long the rest takes. So only a few are asked for at a time: that bounds what half-sent and blown-up messages cost.

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

AT_ONCE = 32
"""Messages read at once: of 4 MiB each, 128 MiB."""
PATIENCE_S = 0.1
"""How long a message may take to come while others wait for its slot."""


class _Reading:
    """A call that reads its message."""

    __slots__ = ("given_up", "since", "task")

    def __init__(self, task: asyncio.Task[object], since: float) -> None:
        self.task = task
        self.since = since
        self.given_up = False


class Arrivals:
    """The slots for messages; used from one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._waiting_max = limits.calls_max
        self._reading: dict[_Reading, str] = {}  # the oldest first
        self._of: Counter[str] = Counter()  # slots held, by connection
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # connections in their turn
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    async def message(self, peer: str, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the message that `read` brings, in its turn; raise Refused where it cannot have one."""
        if not self._free(peer):
            await self._turn(peer)
        else:
            self._of[peer] += 1
        task = asyncio.current_task()
        assert task is not None
        reading = _Reading(task, asyncio.get_running_loop().time())
        self._reading[reading] = peer
        try:
            return await read()
        except asyncio.CancelledError:
            if not reading.given_up or task.uncancel():
                raise
            message = f"the message did not come within {PATIENCE_S:g} s, and others wait; send it again"
            raise Refused(OVERLOADED, message) from None
        finally:
            del self._reading[reading]
            self._release(peer)

    def _free(self, peer: str) -> bool:
        taken = self._of.total() if self._waiting else len(self._reading)
        return taken < AT_ONCE and self._of[peer] < AT_ONCE // SHARE_OF_ONE

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

    def _release(self, peer: str) -> None:
        self._of[peer] -= 1
        if not self._of[peer]:
            del self._of[peer]
        self._call_next()

    def _call_next(self) -> None:
        """Give free slots to those who wait, one connection after the other."""
        for peer in list(self._waiting):
            if self._of.total() >= AT_ONCE:
                return
            if self._of[peer] >= AT_ONCE // SHARE_OF_ONE:
                continue
            queue = self._waiting.pop(peer)
            while queue:
                turn = queue.popleft()
                self._count -= 1
                if not turn.done():
                    self._of[peer] += 1
                    turn.set_result(None)
                    break
            if queue:
                self._waiting[peer] = queue  # behind the others

    def _hurry(self) -> None:
        """See to it that those who dawdle give their slots up."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S / 2, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        now = asyncio.get_running_loop().time()
        for reading in self._reading:
            if now - reading.since < PATIENCE_S:
                break
            if not reading.given_up:
                reading.given_up = True
                reading.task.cancel()
        self._hurry()
