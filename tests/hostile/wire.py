"""A connection without manners: frames as the attacker wants them, sent as far as they go, answers unread.

Nothing waits for ever: what the server does not take within a moment stays unsent, and a server that hangs
up is connected to anew.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from bench.frames import (
    ACK,
    DATA,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    SETTINGS,
    encoded,
    literal_headers,
)

LOOKUP = "/kvmeta.v1.StoreService/Lookup"
WRITE = "/kvmeta.v1.StoreService/Write"
FRAME_BYTES_MAX = 16_384
_PATIENCE_S = 0.2
_CONNECT_S = 60.0


class Wire:
    """A TCP connection, with `hello` an HTTP/2 one. `window_bytes`: what the server may send on a stream."""

    def __init__(self, address: str, *, hello: bool = True, window_bytes: int = 65_535) -> None:
        self.address = address
        self._hello = hello
        self._own = struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)
        self._stream = 1
        self._socket = self._connected()

    def send(self, data: bytes) -> bool:
        """Send bytes; return False, on a new connection, where the server did not take them all."""
        try:
            self._socket.sendall(data)
        except OSError:
            self.again()
            return False
        return True

    def next_stream(self) -> int:
        """Return the number of a stream not used yet."""
        number, self._stream = self._stream, self._stream + 2
        return number

    def headers(self, path: str = LOOKUP, stream: int | None = None, **more: str) -> bytes:
        """Return a frame that begins a call of gRPC, and does not end it."""
        fields = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": self.address,
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        number = self.next_stream() if stream is None else stream
        return encoded(HEADERS, END_HEADERS, number, literal_headers(fields))

    def drain(self) -> None:
        """Throw away what has come; connect anew where the server hung up."""
        self._socket.setblocking(False)
        try:
            while True:
                if not self._socket.recv(1 << 20):
                    self.again()
                    return
        except BlockingIOError:
            self._socket.settimeout(_PATIENCE_S)
        except OSError:
            self.again()

    def again(self) -> None:
        """Hang up and connect anew."""
        self.close()
        self._stream = 1
        self._socket = self._connected()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _connected(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        made = socket.create_connection((host, int(port)), _CONNECT_S)
        made.settimeout(_PATIENCE_S)
        if self._hello:
            with suppress(OSError):
                made.sendall(PREFACE + encoded(SETTINGS, 0, 0, self._own) + encoded(SETTINGS, ACK, 0, b""))
        return made


def message(body: bytes, *, compressed: bool = False, size: int | None = None) -> bytes:
    """Return a message of gRPC; `size` is what its prefix says, by default the truth."""
    return struct.pack(">BI", compressed, len(body) if size is None else size) + body


def data_frames(stream: int, body: bytes, *, end: bool = True) -> bytes:
    """Return DATA frames of `body` on a stream."""
    parts = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)] or [b""]
    last = len(parts) - 1
    return b"".join(encoded(DATA, end and i == last, stream, part) for i, part in enumerate(parts))
