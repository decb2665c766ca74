"""Bytes that are no HTTP/2, and frames that break its rules. Seeded."""

from __future__ import annotations

import random
from itertools import count

from bench.frames import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, encoded
from tests.hostile.wire import FRAME_BYTES_MAX, Wire

CONNECTIONS = 20
_CONTINUATION = 9
_TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(193))


class _Rounds:
    """A new connection for each piece of nonsense, some of them open at once."""

    hello = False

    def __init__(self, address: str, scale: float) -> None:
        self.random = random.Random(type(self).__name__)
        self._wires = [Wire(address, hello=self.hello) for _ in range(max(1, round(CONNECTIONS * scale)))]
        self._turn = count()

    def step(self) -> None:
        """Send one piece on each connection, then connect anew."""
        for wire in self._wires:
            if wire.send(self.piece(next(self._turn), wire)):
                wire.again()

    def piece(self, turn: int, wire: Wire) -> bytes:
        """Return some nonsense."""
        raise NotImplementedError


class Garbage(_Rounds):
    """Random bytes, TLS, HTTP/1.1, half a preface."""

    def piece(self, turn: int, wire: Wire) -> bytes:
        """Return bytes."""
        noise = self.random.randbytes(self.random.randrange(1, 1 << 16))
        lines = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n"
        return (noise, _TLS_HELLO, lines, PREFACE[:10], PREFACE + noise, bytes(1 << 16))[turn % 6]


class MalformedFrames(_Rounds):
    """Frames that are too long, in the wrong place, or never end."""

    hello = True

    def piece(self, turn: int, wire: Wire) -> bytes:
        """Return frames."""
        pick = self.random
        stream = wire.next_stream()
        return (
            encoded(
                pick.randrange(256),
                pick.randrange(256),
                pick.randrange(9),
                pick.randbytes(pick.randrange(99)),
            ),
            encoded(HEADERS, END_HEADERS, stream, pick.randbytes(200)),  # no HPACK
            encoded(HEADERS, 0, stream, b"\0\1a\1b")
            + encoded(_CONTINUATION, 0, stream, b"\0\1a\1b" * 3000) * 60,
            encoded(HEADERS, END_HEADERS, stream, b"\x3f" + b"\xff" * 30),  # a table of any size
            encoded(DATA, 0, 0, b"x"),
            encoded(DATA, 0, 1 << 30, bytes(FRAME_BYTES_MAX)),
            encoded(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
            encoded(SETTINGS, 0, 0, b"\0\5\xff\xff\xff\xff\0\4\xff\xff\xff\xff"),
            b"\xff\xff\xff" + bytes(6) + bytes(FRAME_BYTES_MAX),  # a frame of 16 MB
            wire.headers(stream=stream) + wire.headers(stream=stream),
        )[turn % 10]
