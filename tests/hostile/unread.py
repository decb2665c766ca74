"""Calls whose answers nobody takes: the window for them is zero."""

from __future__ import annotations

import time

import numpy as np

import kvmeta
from kvmeta.v1 import kvmeta_pb2 as pb
from tests.hostile.wire import Wire, data_frames, message

CONNECTIONS, CALLS, ROWS = 120, 40, 2048


class Unread:
    """CALLS lookups of ROWS IDs on each of CONNECTIONS connections, again and again."""

    def __init__(self, address: str, scale: float) -> None:
        ids = kvmeta.ids_from_ints(np.arange(ROWS, dtype=np.uint64))
        self._body = message(pb.LookupRequest(ids=pb.Packed(plain=ids.tobytes())).SerializeToString())
        self._wires = [Wire(address, window_bytes=0) for _ in range(round(CONNECTIONS * scale))]
        self._turn = 0

    def step(self) -> None:
        """Ask, on the next connection."""
        wire = self._wires[self._turn % len(self._wires)]
        self._turn += 1
        if self._turn > len(self._wires):
            wire.again()
        for _ in range(CALLS):
            stream = wire.next_stream()
            if not wire.send(wire.headers(stream=stream) + data_frames(stream, self._body)):
                break
        time.sleep(0.01)
