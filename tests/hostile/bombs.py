"""Messages that grow when they are unpacked: by gRPC's gzip, and by LZ4 blocks inside columns.

They keep to flow control, for else the server would hang up before it unpacks anything.
"""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor

import lz4.block

from bench.frames import Connection
from kvmeta.v1 import kvmeta_pb2 as pb
from tests.hostile.wire import LOOKUP, WRITE

BYTES = 200 << 20
CONNECTIONS, CALLS = 16, 60


class _Bombs:
    """The same calls over and over, on a few connections."""

    def __init__(
        self, address: str, scale: float, path: str, bodies: list[bytes], encoding: str = ""
    ) -> None:
        self._address, self._count = address, max(1, round(CONNECTIONS * scale))
        self._path, self._bodies, self._encoding = path, bodies, encoding
        self._threads = ThreadPoolExecutor(self._count)

    def step(self) -> None:
        """Send some on new connections, all at once."""
        for sent in [self._threads.submit(self._send) for _ in range(self._count)]:
            sent.result()

    def _send(self) -> None:
        connection = Connection(self._address)
        try:
            for i in range(CALLS):
                connection.call(self._path, self._bodies[i % len(self._bodies)], encoding=self._encoding)
            connection.received()
        except OSError:  # the server hung up
            pass
        finally:
            connection.close()


class GzipBombs(_Bombs):
    """200 MB of zeros, and a message just within the limit, as gzip makes them small."""

    def __init__(self, address: str, scale: float) -> None:
        packed = [gzip.compress(bytes(size)) for size in (BYTES, (4 << 20) - 100)]
        super().__init__(address, scale, LOOKUP, [packed[0], *[packed[1]] * 9], "gzip")


class Lz4Bombs(_Bombs):
    """Columns whose LZ4 blocks say, or have, far more than a batch may."""

    def __init__(self, address: str, scale: float) -> None:
        large = lz4.block.compress(bytes(BYTES), store_size=False)
        sizes = ((1 << 32) - 1, 1 << 31, BYTES, 65_536 * 16, 16)
        columns = [pb.Packed(lz4=size.to_bytes(4, "little") + large) for size in sizes]
        requests = [pb.WriteRequest(operation=pb.OPERATION_PUT, ids=each, locations=each) for each in columns]
        super().__init__(address, scale, WRITE, [each.SerializeToString() for each in requests])
