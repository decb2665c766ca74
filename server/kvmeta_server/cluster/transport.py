"""The wire between nodes: gRPC."""

from __future__ import annotations

import grpc

from kvmeta.client.attempts import never_reached
from kvmeta.protocol import status
from kvmeta.protocol.calls import PEER_METHODS
from kvmeta_server.cluster.seams import CallError

_OPTIONS = [
    ("grpc.max_receive_message_length", 128 << 20),
    ("grpc.max_send_message_length", 128 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


class GrpcWire:
    """One channel an address."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def call(self, address: str, method: str, request: bytes, timeout_s: float) -> bytes:
        """Return the answer's bytes; CallError where there is none."""
        try:
            call = self._channel(address).unary_unary(PEER_METHODS[method].path, None, None)
            reply: bytes = await call(request, timeout=timeout_s)
            return reply
        except grpc.aio.AioRpcError as failed:
            told = status.of_failed_call(failed)
            begun = not (never_reached(told) or told.reason in status.NOT_STARTED)
            message = str(told.error) or failed.code().name
            raise CallError(message, answered=bool(told.reason), begun=begun) from None
        except grpc.aio.UsageError:
            raise CallError("this node is stopping", answered=True, begun=False) from None

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close(None)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, _OPTIONS)
        return self._channels[address]
