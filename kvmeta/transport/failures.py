"""What a failed call tells, whatever carried it. Whoever asked decides from this alone what to do next.

nothing was done     NOT_SENT, NOT_REACHED, and ANSWERED with a reason of `status.NOT_STARTED`
nobody knows         CUT_OFF, LOST, LATE, BROKEN
the server said so   ANSWERED, UNKNOWN_CALL, DENIED, TOO_LARGE
"""

from __future__ import annotations

from enum import Enum

from kvmeta.errors import KvmetaError
from kvmeta.protocol import status


class Kind(Enum):
    """How a call failed."""

    NOT_SENT = "the connection was closed before"
    CUT_OFF = "the connection was closed meanwhile"
    NOT_REACHED = "no server has begun the call"
    LOST = "the connection broke"
    LATE = "no answer came in time"
    ANSWERED = "a kvmeta server said why"
    UNKNOWN_CALL = "the server has no such call"
    DENIED = "the caller is not let in"
    TOO_LARGE = "the message was refused before it was read"
    BROKEN = "something else went wrong, and no kvmeta server said what"


_NOT_BEGUN = (Kind.NOT_SENT, Kind.NOT_REACHED)


class CallFailed(Exception):  # noqa: N818 - what happened to the call
    """A call without an answer.

    `reason` is that of `protocol/status.py`, "" unless a kvmeta server gave it; `error` says the same, or the
    transport's own words, as an error for the caller.
    """

    def __init__(self, kind: Kind, message: str, told: status.Told | None = None) -> None:
        super().__init__(message or kind.value)
        self.kind = kind
        self.reason = "" if told is None else told.reason
        self.error = KvmetaError(message) if told is None else told.error

    @property
    def begun(self) -> bool:
        """Return whether a server may have begun the call."""
        return self.kind not in _NOT_BEGUN and self.reason not in status.NOT_STARTED
