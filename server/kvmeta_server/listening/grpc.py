"""Listening by gRPC: its handlers, its statuses, its settings, its health and reflection services.

Every call is unary, one message each way. The handlers are those of a stream of requests all the same, for
only these leave it to us when a message is read.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from kvmeta.errors import InputError, UnavailableError
from kvmeta.protocol.methods import STORE_SERVICE
from kvmeta.transport.grpc import DETAILS_KEY
from kvmeta_server.admission import SHARE_OF_ONE
from kvmeta_server.config import Config
from kvmeta_server.service import Arrival, Endpoint, Failed

SENDING_S = 5.0
"""For the answer, or the status, to leave after the time is up."""
_WINDOW_BYTES = 64 << 10  # of a stream
_SERVING = health_pb2.HealthCheckResponse.SERVING
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcListener:
    """A gRPC server; `address` is where it listens once it has started."""

    def __init__(self, config: Config, endpoints: Iterable[Endpoint]) -> None:
        self._config = config
        self._server = grpc.aio.server(options=channel_arguments(config))
        handlers: dict[str, dict[str, Any]] = defaultdict(dict)
        for method, answer in endpoints:
            service = method.path.split("/")[1]
            handlers[service][method.name] = grpc.stream_unary_rpc_method_handler(_behaviour(answer))
        for service, named in handlers.items():
            generic = grpc.method_handlers_generic_handler(service, named)
            self._server.add_generic_rpc_handlers((generic,))
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (STORE_SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.address = ""

    async def start(self) -> None:
        """Listen."""
        self.address = _bind(self._server, self._config)
        await self._server.start()
        for name in (STORE_SERVICE, ""):
            await self._health.set(name, _SERVING)

    async def say_goodbye(self) -> None:
        """Tell whoever asks for this server's health that it is on its way out."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float | None) -> None:
        """Listen no more; break off what is under way after `grace_s`, None: at once."""
        await self._server.stop(grace_s)


class _GrpcArrival:
    """An arrival by gRPC."""

    __slots__ = ("_context", "peer")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.peer: str = context.peer()

    def left_s(self) -> float | None:
        """Return how long it may take."""
        left_s: float | None = self._context.time_remaining()
        return left_s

    async def message(self) -> bytes:
        """Read its message, by `read`: the iterator of requests would keep it as long as the call."""
        raw = await self._context.read()
        if not isinstance(raw, bytes):  # grpc.aio.EOF
            raise InputError("the call has no message")
        return raw

    def end_after(self, seconds: float) -> None:
        """Break the call off if even its answer has not left in time: a peer that does not read it."""
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(seconds + SENDING_S, task.cancel)
        self._context.add_done_callback(lambda _: timer.cancel())

    def when_left(self, callback: Callable[[], None]) -> None:
        """Call `callback` once it has ended."""
        self._context.add_done_callback(lambda _: callback())


def _behaviour(answer: Callable[[Arrival], Awaitable[bytes]]) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def behaviour(_: Any, context: Any) -> bytes:
        try:
            return await answer(_GrpcArrival(context))
        except Failed as failed:
            raise await _aborted(context, failed.told) from None

    return behaviour


async def _aborted(context: Any, told: status_pb2.Status) -> BaseException:
    """End the call with what is told; return what must be raised for it."""
    try:
        details = ((DETAILS_KEY, told.SerializeToString()),)
        await context.abort(_CODES[told.code], told.message, details)
    except grpc.aio.AbortError as error:
        return error
    raise AssertionError("an abort that returns")


def _bind(server: Any, config: Config) -> str:
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {config.listen}: {error}; --listen HOST:PORT names another address"
        ) from None
    host = config.listen.rpartition(":")[0]
    return f"{host}:{port}"


def channel_arguments(config: Config) -> list[tuple[str, int]]:
    """Return gRPC's arguments for a server."""
    limits = config.limits
    arguments = [
        ("grpc.so_reuseport", 0),  # a second server on the port shall fail, not share it
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        # What bounds the calls of a connection whose messages never arrive: those are not admitted yet. Twice
        # its share, so that it is admission which refuses, with a reason.
        ("grpc.max_concurrent_streams", max(1, 2 * limits.calls_max // SHARE_OF_ONE)),
        # gRPC would let each stream send 4 MiB, and more, before anybody reads. So it is 64 KiB, and what a
        # message that is being read still lacks.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.keepalive_time_ms", 60_000),  # finds peers that went away without a word
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # 0: every ping is answered. A connection with too many gRPC would close when its answers have left,
        # and until then note each one more, with a copy of all its notes: a flood took all threads for long
        # after its end. Answers cost little, and gRPC reads no further where too many of them wait.
        ("grpc.http2.max_ping_strikes", 0),
    ]
    if limits.connection_idle_s:
        arguments.append(("grpc.max_connection_idle_ms", round(limits.connection_idle_s * 1000)))
    if limits.connection_age_s:
        arguments.append(("grpc.max_connection_age_ms", round(limits.connection_age_s * 1000)))
        arguments.append(("grpc.max_connection_age_grace_ms", round(limits.deadline_s * 1000)))
    return arguments
