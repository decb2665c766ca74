"""gRPC as a transport: bytes to a server and back, for callers that block and for those that await.

    Blocking   one channel a server, any number of threads; a fork waits for calls under way (forks.py), and
               the child makes channels of its own
    Awaited    the same for one event loop; it survives no fork, which is refused

This is where gRPC's statuses and sentences become a `CallFailed`. Nothing above knows them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from kvmeta.errors import UnsupportedError
from kvmeta.protocol import status
from kvmeta.protocol.methods import Method
from kvmeta.transport.failures import CallFailed, Kind
from kvmeta.transport.forks import gate

DETAILS_KEY = "grpc-status-details-bin"
"""Where a status's details travel."""
Arguments = Sequence[tuple[str, Any]]
CLIENT_ARGUMENTS: Arguments = (
    ("grpc.max_receive_message_length", 64 << 20),  # the server bounds its replies
    # gRPC's own retries stay on: without a policy they repeat only what a server has not begun.
    ("grpc.use_local_subchannel_pool", 1),  # a store has a connection of its own
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
"""A client's channels."""
PEER_ARGUMENTS: Arguments = (
    ("grpc.max_receive_message_length", 128 << 20),
    ("grpc.max_send_message_length", 128 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
"""The channels between nodes."""

_NEVER_REACHED = (  # what gRPC says of a call that no server has begun
    "failed to connect to all addresses",
    "errors resolving ",
    "DNS resolution failed",
    "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))",  # REFUSED_STREAM
)
_Code = grpc.StatusCode
_KINDS = {
    _Code.UNAVAILABLE: Kind.LOST,
    _Code.CANCELLED: Kind.LOST,
    _Code.DEADLINE_EXCEEDED: Kind.LATE,
    _Code.UNIMPLEMENTED: Kind.UNKNOWN_CALL,
    _Code.UNAUTHENTICATED: Kind.DENIED,
    _Code.PERMISSION_DENIED: Kind.DENIED,
    _Code.RESOURCE_EXHAUSTED: Kind.TOO_LARGE,
    _Code.INVALID_ARGUMENT: Kind.TOO_LARGE,
}
"""What a status means that no kvmeta server made; any other is BROKEN."""


def failure_of(code: grpc.StatusCode, message: str, metadata: Any) -> CallFailed:
    """Return what a status tells: of its code, its message and its trailing metadata (pairs)."""
    details = next((value for key, value in metadata or () if key == DETAILS_KEY), None)
    told = status.told_by(message, details)
    if told.reason:
        return CallFailed(Kind.ANSWERED, message, told)
    kind = _KINDS.get(code, Kind.BROKEN)
    if kind is Kind.LOST and message.startswith(_NEVER_REACHED):
        kind = Kind.NOT_REACHED
    return CallFailed(kind, message or code.name, told)


def _failure(failed: Exception) -> CallFailed:
    """Return what an exception tells that gRPC raised of a call."""
    if isinstance(failed, grpc.FutureCancelledError):
        return CallFailed(Kind.CUT_OFF, "")
    if isinstance(failed, (ValueError, grpc.aio.UsageError)):  # of a channel that is closed
        return CallFailed(Kind.NOT_SENT, "")
    rpc: Any = failed
    return failure_of(rpc.code(), rpc.details() or "", rpc.trailing_metadata())


class Flight:
    """A blocking caller's call that is under way."""

    __slots__ = ("_future",)

    def __init__(self, future: grpc.Future[Any]) -> None:
        self._future = future

    def result(self, timeout_s: float | None = None) -> bytes:
        """Return the reply; CallFailed where there is none, TimeoutError where there is none yet."""
        try:
            reply: bytes = self._future.result(timeout_s)
            return reply
        except grpc.FutureTimeoutError:
            raise TimeoutError from None
        except (grpc.RpcError, grpc.FutureCancelledError) as failed:
            raise _failure(failed) from None

    @property
    def has_reply(self) -> bool:
        """Return whether it ended with a reply; it has ended."""
        return self._future.exception() is None

    @property
    def done(self) -> bool:
        """Return whether it has ended."""
        return self._future.done()

    def when_done(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` when it has ended."""
        self._future.add_done_callback(callback)

    def cancel(self) -> None:
        """Wait for it no more."""
        with gate.inside():
            self._future.cancel()


class Blocking:
    """Channels for callers that block. Any thread may call."""

    def __init__(self, arguments: Arguments = CLIENT_ARGUMENTS) -> None:
        self._arguments = arguments
        self._lock = threading.Lock()
        self._pid = 0
        self._channels: dict[str, grpc.Channel] = {}
        self._stubs: dict[tuple[str, str], Any] = {}  # by server and path
        self._closed = False

    def call(self, server: str, method: Method, request: bytes, timeout_s: float) -> bytes:
        """Return the reply of one call; CallFailed where there is none. Quicker than `start`."""
        try:
            with gate.inside(timeout_s):
                reply: bytes = self._stub(server, method)(request, timeout=timeout_s)
                return reply
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as failed:
            raise _failure(failed) from None

    def start(self, server: str, method: Method, request: bytes, timeout_s: float) -> Flight:
        """Send a call and return it under way; CallFailed where it cannot be sent."""
        try:
            with gate.inside():
                future: grpc.Future[Any] = self._stub(server, method).future(request, timeout=timeout_s)
                gate.follow(future, timeout_s)
            return Flight(future)
        except ValueError as failed:
            raise _failure(failed) from None
        except BaseException:  # Ctrl-C, or a signal's handler: it may have kept gRPC from giving a lock back
            self._abandon()
            raise

    def close(self) -> None:
        """Close all channels. Idempotent."""
        with gate.inside(), self._lock:  # in this order: then no fork finds the lock taken
            self._closed = True
            if self._pid == os.getpid():
                for channel in self._channels.values():
                    channel.close()

    def _stub(self, server: str, method: Method) -> Any:
        """Return what gRPC calls a method of a server by. The caller is inside the gate."""
        if self._pid == os.getpid():
            stub = self._stubs.get((server, method.path))
            if stub is not None and not self._closed:
                return stub
        with self._lock:
            return self._reached(server, method)

    def _reached(self, server: str, method: Method) -> Any:
        if self._closed:
            raise ValueError("closed")
        if self._pid != os.getpid():  # no channel survives a fork
            gate.check_fork()
            self._channels, self._stubs = {}, {}
            self._pid = os.getpid()  # last: other threads go by it
        if server not in self._channels:
            self._channels[server] = grpc.insecure_channel(server, self._arguments)
        stub = self._channels[server].unary_unary(method.path, None, None)  # bytes both ways
        self._stubs[server, method.path] = stub
        return stub

    def _abandon(self) -> None:
        """Leave the channels to themselves; the next call makes others. To close them might wait for ever."""
        with gate.inside(), self._lock:
            self._channels, self._stubs = {}, {}
            self._pid = 0


_process = 0  # the one whose event loops gRPC serves: it has one poller, in a thread that a fork lacks


class Awaited:
    """Channels for one event loop."""

    def __init__(self, arguments: Arguments = CLIENT_ARGUMENTS) -> None:
        self._arguments = arguments
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, str], Any] = {}
        self._closed = False

    async def call(self, server: str, method: Method, request: bytes, timeout_s: float) -> bytes:
        """Return the reply of one call; CallFailed where there is none."""
        try:
            reply: bytes = await self._stub(server, method)(request, timeout=timeout_s)
            return reply
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as failed:
            raise _failure(failed) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            # Closing a channel cancels its calls, not those who wait for them.
            raise CallFailed(Kind.CUT_OFF, "") from None

    async def close(self) -> None:
        """Close all channels. Idempotent."""
        self._closed = True
        if _process == os.getpid():
            for channel in list(self._channels.values()):
                await channel.close(None)

    def _stub(self, server: str, method: Method) -> Any:
        if self._closed:
            raise grpc.aio.UsageError("closed")
        if _process != os.getpid():
            _take_process(server)
        stub = self._stubs.get((server, method.path))
        if stub is None:
            if server not in self._channels:
                self._channels[server] = grpc.aio.insecure_channel(server, self._arguments)
            stub = self._channels[server].unary_unary(method.path, None, None)
            self._stubs[server, method.path] = stub
        return stub


def _take_process(server: str) -> None:
    """Note that gRPC's event loops are of this process; UnsupportedError where they are of its parent."""
    global _process
    gate.check_fork()
    if _process not in (0, os.getpid()):
        raise UnsupportedError(
            f"{server}: forked from a process that used kvmeta.aio, this one would hang in it. "
            'Start processes that use a server by "spawn" or "forkserver"'
        )
    _process = os.getpid()
