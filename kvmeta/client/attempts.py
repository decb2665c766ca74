"""Which failed calls are tried again, and what the others mean: a pure function of failures and the clock.

    the server says that it did nothing (OVERLOADED, DRAINING)   any call is repeated
    it was never reached                                         any call is repeated
    the connection broke                                         safe calls are repeated
    it is slow, and there are other servers                      quick reads are asked of the next
    anything else                                                that is the answer

An insert or a relocate whose answer is lost is never repeated: the second attempt would answer for the first.
It raises OutcomeUnknownError. Pauses double from 50 ms to 2 s, each drawn at random from half of it on, so
that clients do not come back in step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from kvmeta.client.calls import Call
from kvmeta.errors import (
    DeadlineError,
    InputError,
    KvmetaError,
    OutcomeUnknownError,
    UnavailableError,
    UnsupportedError,
)
from kvmeta.protocol.status import DEADLINE, DRAINING, FAULT, TWIN
from kvmeta.transport.failures import CallFailed, Kind

FIRST_PAUSE_S = 0.05
PAUSE_S_MAX = 2.0


class Attempts:
    """The attempts of one call, until its deadline `timeout_s` from now."""

    def __init__(
        self,
        call: Call,
        servers: str | Sequence[str],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[], float] = random.random,
        failover_s: float = float("inf"),
    ) -> None:
        self._call = call
        self._servers = (servers,) if isinstance(servers, str) else tuple(servers)
        self._turn = 0
        self.missed = False
        """Whether the server of the last attempt did not answer, or is on its way out."""
        self.sent = clock()
        self._timeout_s = timeout_s
        self._failover_s = failover_s
        self._clock = clock
        self._share = share
        self._end = clock() + timeout_s
        self._pause_s = FIRST_PAUSE_S
        self._maybe_done = False  # an attempt before may have taken effect
        self._ended: float | None = None

    @property
    def server(self) -> str:
        """Return whom to ask now."""
        return self._servers[self._turn % len(self._servers)]

    @property
    def others(self) -> tuple[str, ...]:
        """Return whom else could be asked."""
        return tuple(server for server in self._servers if server != self.server)

    def attempt_s(self) -> float:
        """Return how long this attempt may take: less where another server can be asked instead.

        Only of calls that change nothing and are quick: a write that was given up here might be done there
        later, on top of what the caller wrote since.
        """
        if len(self._servers) == 1 or not self._call.method.row.quick:
            return self.left_s()
        share = self._timeout_s / len(self._servers)
        return min(self.left_s(), max(self._failover_s, 0.001), max(share, 0.1))

    def left_s(self) -> float:
        """Return the seconds until the deadline; at least one millisecond."""
        return max(0.001, self._end - self._clock())

    def ended(self, _: Any = None) -> None:
        """Note that an attempt has ended now: until somebody looks at it, no time passes."""
        self._ended = self._clock()

    def cut_off(self, *, sent: bool) -> KvmetaError:
        """Return the error of a call whose store was closed meanwhile."""
        text = f"the connection to {self.server} was closed meanwhile"
        if self._changes and (sent or self._maybe_done):
            return OutcomeUnknownError(f"{text}{self._maybe(True)}")
        return InputError(text)

    def after(self, failed: CallFailed, *, closed: bool = False) -> float:
        """Return how many seconds to pause before the next attempt; raise the error that ends the call.

        `closed`: whether the store was closed, which ends what no kvmeta server has given an answer to.
        """
        if closed and not failed.reason:
            raise self.cut_off(sent=failed.kind is not Kind.NOT_SENT)
        if self._ended is not None:
            self._end += self._clock() - self._ended
            self._ended = None
        self.missed = failed.reason in ("", DRAINING, TWIN)
        another = len(self._servers) > 1 and self._call.method.row.quick
        went_away = failed.kind is Kind.LOST or (another and failed.kind is Kind.LATE)
        if failed.begun and not (self._call.repeatable and went_away):
            raise self._error(failed)
        self._maybe_done = self._maybe_done or failed.begun
        pause_s = self._pause_s * (0.5 + 0.5 * self._share())
        if self._clock() + pause_s >= self._end:
            late = f" (not done within {self._timeout_s:g} s)"
            raise UnavailableError(f"{self._told(failed)}{late}{self._maybe(self._maybe_done)}")
        self._turn += 1
        if self._turn % len(self._servers):  # another server: no need to wait
            return 0.0
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        return pause_s

    def malformed(self, error: InputError) -> KvmetaError:
        """Return the error for a reply that is not what the protocol says."""
        text = f"{self.server} answered {self._call.method.name} with something malformed: {error}"
        return OutcomeUnknownError(text) if self._changes else UnavailableError(text)

    @property
    def _changes(self) -> bool:
        return self._call.method.row.changes

    def _error(self, failed: CallFailed) -> KvmetaError:
        """Return what a failure means that is not followed by another attempt."""
        told = self._told(failed)
        if failed.reason not in ("", FAULT, DEADLINE):
            failed.error.args = (f"{failed.error}{self._maybe(self._maybe_done)}", *failed.error.args[1:])
            return failed.error
        if failed.kind is Kind.UNKNOWN_CALL:
            return UnsupportedError(f"{told}; is the server older than the client?")
        if failed.kind is Kind.DENIED:
            return UnavailableError(told)
        if self._changes and not self._call.repeatable:
            return OutcomeUnknownError(f"{told}{self._maybe(True)}")
        if failed.kind is Kind.LATE or failed.reason == DEADLINE:
            return DeadlineError(f"{told} (no answer within {self._timeout_s:g} s){self._maybe(True)}")
        if self._changes:
            return OutcomeUnknownError(f"{told}{self._maybe(True)}")
        if failed.kind is Kind.TOO_LARGE:
            return InputError(told)
        return UnavailableError(told)

    def _told(self, failed: CallFailed) -> str:
        return f"{self.server}, {self._call.method.name}: {failed}"

    def _maybe(self, maybe_done: bool) -> str:
        return "; it may or may not have taken effect" if self._changes and maybe_done else ""
