"""Calls that never arrive: byte by byte (slow loris), or large messages that stop before their end."""

from __future__ import annotations

import time

from bench import frames
from tests.hostile.wire import LOOKUP, Wire

CONNECTIONS = 1000
HALVES, STREAMS, BYTES, SENT = 20, 24, 4_000_000, 0.97


class Trickle:
    """CONNECTIONS connections that send a byte now and then, of a preface, headers or a message."""

    def __init__(self, address: str, scale: float) -> None:
        self._wires = [Wire(address, hello=i % 3 != 0) for i in range(round(CONNECTIONS * scale))]
        whole = [wire.headers() + frames.encoded(frames.DATA, 0, 1, bytes(4000)) for wire in self._wires[:1]]
        self._bytes = [frames.PREFACE, *whole, *whole]
        self._at = 0

    def step(self) -> None:
        """Send one byte to each connection."""
        for number, wire in enumerate(self._wires):
            data = self._bytes[number % 3]
            at = self._at % len(data)
            wire.send(data[at : at + 1])
        self._at += 1
        time.sleep(0.1)


class HalfMessages:
    """STREAMS messages on each of HALVES connections: nearly 4 MB of each is sent, the end never."""

    def __init__(self, address: str, scale: float) -> None:
        self._address = address
        self._wanted = max(1, round(HALVES * scale))
        self._held: list[frames.Connection] = []

    def step(self) -> None:
        """Send one connection's messages, or hold what has been sent."""
        if len(self._held) == self._wanted:
            self._held.pop(0).close()
        connection = frames.Connection(self._address)
        self._held.append(connection)
        for _ in range(STREAMS):
            connection.call(LOOKUP, bytes(BYTES), SENT)
