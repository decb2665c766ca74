"""The wire between nodes: gRPC."""

from __future__ import annotations

from kvmeta.transport import grpc


def grpc_wire() -> grpc.Awaited:
    """Return a wire with one channel an address."""
    return grpc.Awaited(grpc.PEER_ARGUMENTS)
