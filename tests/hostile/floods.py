"""Frames that cost the sender nothing: pings, settings, and calls that are reset as soon as they begin."""

from __future__ import annotations

import struct
from itertools import count

from bench.frames import INITIAL_WINDOW_SIZE, PING, RESET, SETTINGS, encoded
from tests.hostile.wire import Wire

CONNECTIONS, FRAMES = 10, 2000
_CANCEL = struct.pack(">I", 8)


class _Flood:
    """Many frames at once, on a few connections; what comes back is left unread until it must not be."""

    def __init__(self, address: str, scale: float) -> None:
        self.wires = [Wire(address) for _ in range(max(1, round(CONNECTIONS * scale)))]
        self.number = count()

    def step(self) -> None:
        """Send FRAMES to each connection."""
        for wire in self.wires:
            if next(self.number) % 3 == 0:
                wire.drain()
            wire.send(b"".join(self.frame(wire) for _ in range(FRAMES)))

    def frame(self, wire: Wire) -> bytes:
        """Return the next frame."""
        raise NotImplementedError


class Pings(_Flood):
    """PING after PING."""

    def frame(self, wire: Wire) -> bytes:
        """Return a ping."""
        return encoded(PING, 0, 0, struct.pack(">Q", next(self.number)))


class Settings(_Flood):
    """SETTINGS that change the window each time: each must be acknowledged, and moves every stream."""

    def frame(self, wire: Wire) -> bytes:
        """Return settings."""
        return encoded(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, next(self.number) % 60_000))


class RapidResets(_Flood):
    """Calls that are taken back at once (CVE-2023-44487)."""

    def frame(self, wire: Wire) -> bytes:
        """Return the beginning of a call and its end."""
        stream = wire.next_stream()
        return wire.headers(stream=stream) + encoded(RESET, 0, stream, _CANCEL)
