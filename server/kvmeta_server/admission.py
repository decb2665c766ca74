"""Admission: how much a server takes on at once. What is beyond is refused at once, not queued.

A call counts from its arrival until its answer has left, so a client that reads no answers holds its own
share. One connection may hold a quarter of the bytes and calls: no single client shuts the others out.
"""

from __future__ import annotations

from collections import Counter

from kvmeta.protocol.status import DRAINING, OVERLOADED
from kvmeta_server.config import Limits
from kvmeta_server.refusal import Refused

SHARE_OF_ONE = 4
"""One connection may hold one of so many parts."""
ANSWERS_TIMES = 2
"""Answers that may be given up are, where all bytes are more than so many times what calls are refused at."""


class Admission:
    """What is in flight; used from one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._refused: Refused | None = None
        self._calls: Counter[str] = Counter()  # by connection
        self._bytes: Counter[str] = Counter()
        self.calls = 0
        self.bytes = 0

    def drain(self) -> None:
        """Refuse every call from now on: the server is shutting down."""
        self.refuse(DRAINING, "the server is shutting down")

    def refuse(self, reason: str, message: str) -> None:
        """Refuse every call from now on, with a reason of `status.NOT_STARTED`."""
        self._refused = Refused(reason, message)

    def admit(self, peer: str, size: int, *, while_draining: bool = False) -> None:
        """Count a call of `size` bytes of connection `peer`; raise Refused where there is no room."""
        limits = self._limits
        if self._refused is not None and not while_draining:
            raise Refused(self._refused.reason, str(self._refused))
        self._refuse_beyond("calls", self.calls, self._calls[peer], limits.calls_max)
        self._refuse_beyond("bytes", self.bytes, self._bytes[peer], limits.bytes_in_flight_max)
        self.calls += 1
        self._calls[peer] += 1
        self.hold(peer, size)

    def hold(self, peer: str, size: int, *, may_refuse: bool = False) -> None:
        """Count `size` more bytes: an answer that waits to leave.

        With `may_refuse`, where the call changed nothing, raise Refused instead if far too much waits: small
        calls may have large answers, and nobody knows how large when they come.
        """
        most = ANSWERS_TIMES * self._limits.bytes_in_flight_max
        if may_refuse and (self.bytes >= most or self._bytes[peer] >= most // SHARE_OF_ONE):
            raise Refused(
                OVERLOADED, f"{self.bytes} bytes wait to leave; take answers, or ask for less at once"
            )
        self.bytes += size
        self._bytes[peer] += size

    def release(self, peer: str, size: int) -> None:
        """Forget an admitted call and all its `size` bytes."""
        self.calls -= 1
        self.bytes -= size
        self._calls[peer] -= 1
        self._bytes[peer] -= size
        if not self._calls[peer]:
            del self._calls[peer], self._bytes[peer]

    def _refuse_beyond(self, what: str, held: int, own: int, most: int) -> None:
        if held >= most:
            raise Refused(OVERLOADED, f"{held} {what} are in flight, of at most {most}; try again later")
        share = max(1, most // SHARE_OF_ONE)
        if own >= share:
            raise Refused(
                OVERLOADED,
                f"this connection has {own} {what} in flight, of at most {share}; wait for answers",
            )
