"""Messages that grow when they are unpacked: by gRPC's gzip, and by LZ4 blocks inside columns."""

from __future__ import annotations

import gzip

import lz4.block

from kvmeta.v1 import kvmeta_pb2 as pb
from tests.hostile.wire import LOOKUP, WRITE, Wire, data_frames, message

BYTES = 200 << 20
CONNECTIONS, CALLS = 8, 16


class _Bombs:
    """The same calls over and over, on a few connections."""

    def __init__(self, address: str, scale: float, path: str, bodies: list[bytes], **headers: str) -> None:
        self._wires = [Wire(address) for _ in range(max(1, round(CONNECTIONS * scale)))]
        self._path, self._bodies, self._headers = path, bodies, headers

    def step(self) -> None:
        """Send some to each connection."""
        for wire in self._wires:
            wire.drain()
            for i in range(CALLS):
                stream = wire.next_stream()
                body = self._bodies[i % len(self._bodies)]
                head = wire.headers(self._path, stream, **self._headers)
                if not wire.send(head + data_frames(stream, body)):
                    break


class GzipBombs(_Bombs):
    """200 MB of zeros, and a message just within the limit, as gzip makes them small."""

    def __init__(self, address: str, scale: float) -> None:
        packed = [gzip.compress(bytes(size)) for size in (BYTES, (4 << 20) - 100)]
        bodies = [message(each, compressed=True) for each in packed]
        super().__init__(address, scale, LOOKUP, bodies, grpc_encoding="gzip")


class Lz4Bombs(_Bombs):
    """Columns whose LZ4 blocks say, or have, far more than a batch may."""

    def __init__(self, address: str, scale: float) -> None:
        large = lz4.block.compress(bytes(BYTES), store_size=False)
        sizes = ((1 << 32) - 1, 1 << 31, BYTES, 65_536 * 16, 16)
        columns = [pb.Packed(lz4=size.to_bytes(4, "little") + large) for size in sizes]
        requests = [pb.WriteRequest(operation=pb.OPERATION_PUT, ids=each, locations=each) for each in columns]
        super().__init__(address, scale, WRITE, [message(each.SerializeToString()) for each in requests])
