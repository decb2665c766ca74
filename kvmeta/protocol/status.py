"""Errors as gRPC statuses and back: one table, read in both directions.

A status carries a google.rpc.ErrorInfo whose domain is "kvmeta" and whose reason names the error. A status
without one was not made by a kvmeta server: the connection broke, or something stands in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from kvmeta import errors
from kvmeta.errors import CorruptionError, KvmetaError

DOMAIN = "kvmeta"
DETAILS_KEY = "grpc-status-details-bin"
_MESSAGE_BYTES_MAX = 1000  # all metadata of an answer must stay below 8 KiB, and gRPC may triple the message
_RANGES_MAX = 16

_RANGE = re.compile(r"\b([0-9a-f]{1,32})-([0-9a-f]{1,32})\b")
_Code = grpc.StatusCode

TABLE: tuple[tuple[type[KvmetaError], grpc.StatusCode, str], ...] = (
    (errors.InputError, _Code.INVALID_ARGUMENT, "INPUT"),
    (errors.NotFoundError, _Code.NOT_FOUND, "NOT_FOUND"),
    (errors.StoreLockedError, _Code.FAILED_PRECONDITION, "STORE_LOCKED"),
    (errors.FormatError, _Code.FAILED_PRECONDITION, "FORMAT"),
    (errors.CorruptionError, _Code.DATA_LOSS, "CORRUPTION"),
    (errors.StorageFullError, _Code.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
    (errors.ReadOnlyError, _Code.FAILED_PRECONDITION, "READ_ONLY"),
    (errors.UnavailableError, _Code.UNAVAILABLE, "UNAVAILABLE"),
    (errors.DeadlineError, _Code.DEADLINE_EXCEEDED, "DEADLINE"),
    (errors.OutcomeUnknownError, _Code.UNKNOWN, "OUTCOME_UNKNOWN"),
    (errors.IncompleteBatchError, _Code.DATA_LOSS, "INCOMPLETE_BATCH"),
    (errors.UnsupportedError, _Code.UNIMPLEMENTED, "UNSUPPORTED"),
    (errors.EngineNotInstalledError, _Code.FAILED_PRECONDITION, "ENGINE_NOT_INSTALLED"),
    (errors.KvmetaError, _Code.FAILED_PRECONDITION, "STORE"),
)
"""Error class, status code, reason; the most special class first."""

DEADLINE, OVERLOADED, DRAINING, FAULT = "DEADLINE", "OVERLOADED", "DRAINING", "FAULT"
NOT_STARTED = frozenset({OVERLOADED, DRAINING})
"""Reasons by which a server says that it did nothing: any call may be sent again."""

_OF_REASON: dict[str, type[KvmetaError]] = {
    **{reason: error for error, _, reason in TABLE},
    OVERLOADED: errors.UnavailableError,
    DRAINING: errors.UnavailableError,
    FAULT: errors.UnavailableError,
}
REASONS = frozenset(_OF_REASON)


class FailedStatus(NamedTuple):
    """What a status says: its code, the reason ("" where no kvmeta server made it), and the error."""

    code: grpc.StatusCode
    reason: str
    error: KvmetaError


class _FailedCall(Protocol):
    """A grpc.RpcError or grpc.aio.AioRpcError."""

    def code(self) -> Any: ...
    def details(self) -> Any: ...
    def trailing_metadata(self) -> Any: ...


def of_error(error: KvmetaError) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """Return the status that tells of `error`."""
    for kind, code, reason in TABLE:
        if isinstance(error, kind):
            return code, status(code, reason, str(error), metadata_of(error))
    raise AssertionError(error)  # the table ends with the root


def reason_of(error: KvmetaError) -> str:
    """Return the reason that stands for the class of `error`."""
    return next(reason for kind, _, reason in TABLE if isinstance(error, kind))


def status(
    code: grpc.StatusCode, reason: str, message: str, metadata: dict[str, str] | None = None
) -> status_pb2.Status:
    """Return a google.rpc.Status with one ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=code.value[0], message=_short(message), details=[detail])


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


def of_failed_call(failed: _FailedCall) -> FailedStatus:
    """Return what a failed call's status says; the error of one without ErrorInfo is a plain KvmetaError.

    A reason that this version does not know is none: the status is to be taken by its code.
    """
    code, message = failed.code(), failed.details() or ""
    for info in _error_infos(failed.trailing_metadata() or ()):
        if info.domain == DOMAIN and info.reason in REASONS:
            return FailedStatus(code, info.reason, error_of(info.reason, message, dict(info.metadata)))
    return FailedStatus(code, "", KvmetaError(message))


def _ranges(text: str) -> list[errors.HashRange]:
    return [(int(first, 16), int(last, 16)) for first, last in _RANGE.findall(text)]


def _error_infos(metadata: Iterable[tuple[str, Any]]) -> Iterable[error_details_pb2.ErrorInfo]:
    for key, value in metadata:
        if key == DETAILS_KEY:
            with suppress(DecodeError):  # details that are none say nothing
                for detail in status_pb2.Status.FromString(value).details:
                    if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                        info = error_details_pb2.ErrorInfo()
                        detail.Unpack(info)
                        yield info


def _short(text: str) -> str:
    raw = text.encode("utf-8", "backslashreplace")  # file names may hold lone surrogates
    if len(raw) <= _MESSAGE_BYTES_MAX:
        return raw.decode()
    return raw[: _MESSAGE_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"
