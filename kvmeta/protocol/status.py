"""Errors as statuses and back: one table, read in both directions.

A status is a google.rpc.Status: a code, a message, and a google.rpc.ErrorInfo whose domain is "kvmeta" and
whose reason names the error. A status without one was not made by a kvmeta server: something stands between.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from google.rpc.code_pb2 import Code

from kvmeta import errors
from kvmeta.errors import CorruptionError, KvmetaError

DOMAIN = "kvmeta"
_MESSAGE_BYTES_MAX = 1000  # all metadata of an answer must stay below 8 KiB, and gRPC may triple the message
_RANGES_MAX = 16

_RANGE = re.compile(r"\b([0-9a-f]{1,32})-([0-9a-f]{1,32})\b")


TABLE: tuple[tuple[type[KvmetaError], int, str], ...] = (
    (errors.InputError, Code.INVALID_ARGUMENT, "INPUT"),
    (errors.NotFoundError, Code.NOT_FOUND, "NOT_FOUND"),
    (errors.StoreLockedError, Code.FAILED_PRECONDITION, "STORE_LOCKED"),
    (errors.FormatError, Code.FAILED_PRECONDITION, "FORMAT"),
    (errors.CorruptionError, Code.DATA_LOSS, "CORRUPTION"),
    (errors.StorageFullError, Code.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
    (errors.ReadOnlyError, Code.FAILED_PRECONDITION, "READ_ONLY"),
    (errors.UnavailableError, Code.UNAVAILABLE, "UNAVAILABLE"),
    (errors.DeadlineError, Code.DEADLINE_EXCEEDED, "DEADLINE"),
    (errors.OutcomeUnknownError, Code.UNKNOWN, "OUTCOME_UNKNOWN"),
    (errors.IncompleteBatchError, Code.DATA_LOSS, "INCOMPLETE_BATCH"),
    (errors.UnsupportedError, Code.UNIMPLEMENTED, "UNSUPPORTED"),
    (errors.EngineNotInstalledError, Code.FAILED_PRECONDITION, "ENGINE_NOT_INSTALLED"),
    (errors.KvmetaError, Code.FAILED_PRECONDITION, "STORE"),
)
"""Error class, status code, reason; the most special class first."""

DEADLINE, OVERLOADED, DRAINING, FAULT = "DEADLINE", "OVERLOADED", "DRAINING", "FAULT"
WRONG_NODE, TWIN = "WRONG_NODE", "TWIN"
NO_MEMBER, OTHER_HISTORY, OTHER_LIFE, UNPROVEN = "NO_MEMBER", "OTHER_HISTORY", "OTHER_LIFE", "UNPROVEN"
NOT_STARTED = frozenset(
    {OVERLOADED, DRAINING, WRONG_NODE, TWIN, NO_MEMBER, OTHER_HISTORY, OTHER_LIFE, UNPROVEN}
)
"""Reasons by which a server says that it did nothing: any call may be sent again."""

_OF_REASON: dict[str, type[KvmetaError]] = {
    **{reason: error for error, _, reason in TABLE},
    **dict.fromkeys((*NOT_STARTED, FAULT), errors.UnavailableError),
}
REASONS = frozenset(_OF_REASON)


class Told(NamedTuple):
    """What a status says: the reason ("" where no kvmeta server made it), and the error."""

    reason: str
    error: KvmetaError


def of_error(error: KvmetaError) -> status_pb2.Status:
    """Return the status that tells of `error`."""
    for kind, code, reason in TABLE:
        if isinstance(error, kind):
            return status(code, reason, str(error), metadata_of(error))
    raise AssertionError(error)  # the table ends with the root


def reason_of(error: KvmetaError) -> str:
    """Return the reason that stands for the class of `error`."""
    return next(reason for kind, _, reason in TABLE if isinstance(error, kind))


def status(code: int, reason: str, message: str, metadata: dict[str, str] | None = None) -> status_pb2.Status:
    """Return a google.rpc.Status with one ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=code, message=_short(message), details=[detail])


def metadata_of(error: KvmetaError) -> dict[str, str]:
    """Return what else an error knows, as strings: a CorruptionError's path and its first ranges."""
    if not isinstance(error, CorruptionError):
        return {}
    ranges = ",".join(f"{first:032x}-{last:032x}" for first, last in error.ranges[:_RANGES_MAX])
    return {"path": _short(error.path), "ranges": ranges}


def error_of(reason: str, message: str, metadata: dict[str, str]) -> KvmetaError:
    """Return the error that `reason` stands for; one that this version does not know is a KvmetaError."""
    kind = _OF_REASON.get(reason, KvmetaError)
    if kind is CorruptionError:
        return CorruptionError(message, metadata.get("path", ""), _ranges(metadata.get("ranges", "")))
    if kind is errors.IncompleteBatchError:  # a batch's failures are in its response; this has no columns
        return CorruptionError(message)
    return kind(message)


def told_by(message: str, details: bytes | None) -> Told:
    """Return what a failed call's message and its serialised Status say.

    A reason that this version does not know is none: the status is to be taken by its code. The error of a
    status without a reason is a plain KvmetaError.
    """
    for info in _error_infos(details):
        if info.domain == DOMAIN and info.reason in REASONS:
            return Told(info.reason, error_of(info.reason, message, dict(info.metadata)))
    return Told("", KvmetaError(message))


def _ranges(text: str) -> list[errors.HashRange]:
    return [(int(first, 16), int(last, 16)) for first, last in _RANGE.findall(text)]


def _error_infos(details: bytes | None) -> list[error_details_pb2.ErrorInfo]:
    found: list[error_details_pb2.ErrorInfo] = []
    try:
        for detail in status_pb2.Status.FromString(details or b"").details:
            info = error_details_pb2.ErrorInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                found.append(info)
    except DecodeError:  # details that are none say nothing
        pass
    return found


def _short(text: str) -> str:
    raw = text.encode("utf-8", "backslashreplace")  # file names may hold lone surrogates
    if len(raw) <= _MESSAGE_BYTES_MAX:
        return raw.decode()
    return raw[: _MESSAGE_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"
