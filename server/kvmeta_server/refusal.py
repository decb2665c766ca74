"""A call that is refused before anything was done for it: the caller may come again."""

from __future__ import annotations

from kvmeta.errors import UnavailableError


class Refused(UnavailableError):  # noqa: N818 - what it is, not what went wrong
    """`reason` is one of `status.NOT_STARTED`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
