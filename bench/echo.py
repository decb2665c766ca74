"""The yardstick: a gRPC server of the same shape as kvmeta's that does nothing but answer.

    /bench.Echo/Lookup    a LookupRequest of n IDs in, a LookupResponse of n rows out, made once
    /bench.Echo/Get       a GetResponse

The same server library, event loop, channel arguments and malloc setting as `kvmeta serve`, raw bytes in and
out; no thread, no store, no parsing. What is lost against it is what kvmeta adds to the wire.
`python -m bench.echo` listens on a free loopback port and prints it.
"""

from __future__ import annotations

import asyncio
import signal
from functools import cache
from typing import Any

import grpc
import numpy as np

import kvmeta
from kvmeta.protocol.columns import CODE, PLAIN, VERSION
from kvmeta.protocol.messages import ColumnMessage
from kvmeta.v1 import kvmeta_pb2 as pb

_ID_BYTES = 16
LOOKUP, GET = "/bench.Echo/Lookup", "/bench.Echo/Get"


@cache
def lookup_reply(rows: int) -> bytes:
    """Return a LookupResponse of `rows` rows: random bytes, all found."""
    random = np.random.default_rng(5)
    return ColumnMessage.of(
        pb.LookupResponse(),
        PLAIN,
        states=np.ones(rows, CODE),
        locations=np.frombuffer(random.bytes(rows * kvmeta.LOCATION.itemsize), kvmeta.LOCATION),
        versions=random.integers(1, 1 << 62, rows).astype(VERSION),
    ).SerializeToString()


def get_reply() -> bytes:
    """Return a GetResponse with numbers as large as a catalogue's."""
    location = pb.Location(volume=9999, length=100_000, offset=1 << 29, checksum=1 << 31, tag=1)
    return pb.GetResponse(location=location, version=1 << 60).SerializeToString()


def _handler() -> Any:
    one = get_reply()

    async def lookup(raw: bytes, _: Any) -> bytes:
        return lookup_reply(len(raw) // _ID_BYTES)

    async def get(raw: bytes, _: Any) -> bytes:
        return one

    handlers = {"Lookup": lookup, "Get": get}
    return grpc.method_handlers_generic_handler(
        "bench.Echo", {name: grpc.unary_unary_rpc_method_handler(each) for name, each in handlers.items()}
    )


async def _serve() -> None:
    from kvmeta_server import config  # not above: clients take the names from here
    from kvmeta_server.listening.grpc import channel_arguments

    chosen = config.load(None, {}, {"data": "unused", "listen": "127.0.0.1:0"})
    server = grpc.aio.server(options=channel_arguments(chosen))
    server.add_generic_rpc_handlers((_handler(),))
    port = server.add_insecure_port(chosen.listen)
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(port, flush=True)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    import uvloop

    from kvmeta_server.memory import keep_freed_memory

    keep_freed_memory()
    uvloop.run(_serve())
