"""HTTP/2 by hand, as little as a bad client needs: connect and say nothing, send half a call, read no answer.

    preface | frame | frame …      frame: length u3, kind u1, flags u1, stream u4 (big-endian), payload

A proper gRPC client cannot be made to behave like this, so its bytes are written here. Headers are literal
and uncompressed (RFC 7541, 6.2.2, values below 127 bytes); flow control is kept for what is sent.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
_HEAD = struct.Struct(">BHBBI")
_WINDOW_BYTES, _FRAME_BYTES_MAX = 65_535, 16_384  # before anybody says otherwise
_TIMEOUT_S = 20


class Frame(NamedTuple):
    """One frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def encoded(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame's bytes."""
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def literal_headers(fields: dict[str, str]) -> bytes:
    """Return a header block that needs no table."""
    parts = []
    for name, value in fields.items():
        parts += [b"\0", bytes([len(name)]), name.encode(), bytes([len(value)]), value.encode()]
    return b"".join(parts)


class Connection:
    """A connection that has exchanged settings; `window_bytes` is what the server may send on a stream."""

    def __init__(self, address: str, window_bytes: int = _WINDOW_BYTES) -> None:
        host, _, port = address.rpartition(":")
        self._host = address
        self._socket = socket.create_connection((host, int(port)), _TIMEOUT_S)
        self._pending = b""
        self._seen: list[Frame] = []
        self._stream = -1
        self._window = self._stream_window = self._window_of_new = _WINDOW_BYTES
        own = struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)
        self._socket.sendall(PREFACE + encoded(SETTINGS, 0, 0, own))
        while self._take(self._read()).kind != SETTINGS:
            pass

    def call(self, path: str, message: bytes, share: float = 1.0, encoding: str = "") -> None:
        """Start a unary gRPC call on a stream of its own; with a share below 1 stop within its message.

        `encoding`: how the message is compressed already, such as "gzip".
        """
        self._stream += 2
        self._stream_window = self._window_of_new
        fields = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": self._host,
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        if encoding:
            fields["grpc-encoding"] = encoding
        self._socket.sendall(encoded(HEADERS, END_HEADERS, self._stream, literal_headers(fields)))
        body = struct.pack(">BI", bool(encoding), len(message)) + message
        end = round(len(body) * share)
        done = 0
        while done < end:
            size = min(end - done, _FRAME_BYTES_MAX, self._window, self._stream_window)
            if size <= 0:
                self._take(self._read())
                continue
            flags = END_STREAM if done + size == len(body) else 0
            self._socket.sendall(encoded(DATA, flags, self._stream, body[done : done + size]))
            done += size
            self._window -= size
            self._stream_window -= size

    def received(self) -> list[Frame] | None:
        """Return the frames that have come so far; None where the server has hung up."""
        self._socket.setblocking(False)
        try:
            while True:
                more = self._socket.recv(1 << 16)
                if not more:
                    return None
                self._pending += more
        except BlockingIOError:
            for _ in self._complete():
                pass
            return self._seen
        except OSError:
            return None
        finally:
            self._socket.settimeout(_TIMEOUT_S)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _read(self) -> Frame:
        while True:
            for frame in self._complete(1):
                return frame
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionError("the server hung up")
            self._pending += more

    def _complete(self, most: int = 1 << 30) -> Iterator[Frame]:
        """Yield up to `most` frames that have arrived whole."""
        while most and len(self._pending) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._pending)
            end = _HEAD.size + (high << 16 | low)
            if len(self._pending) < end:
                return
            payload, self._pending = self._pending[_HEAD.size : end], self._pending[end:]
            most -= 1
            self._seen.append(Frame(kind, flags, stream, payload))
            yield self._seen[-1]

    def _take(self, frame: Frame) -> Frame:
        """Do what a frame asks of a peer that sends."""
        if frame.kind == SETTINGS and not frame.flags & ACK:
            for at in range(0, len(frame.payload), 6):
                name, value = struct.unpack_from(">HI", frame.payload, at)
                if name == INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._window_of_new
                    self._window_of_new = value
            self._socket.sendall(encoded(SETTINGS, ACK, 0, b""))
        elif frame.kind == PING and not frame.flags & ACK:
            self._socket.sendall(encoded(PING, ACK, 0, frame.payload))
        elif frame.kind == WINDOW_UPDATE:
            grant = struct.unpack(">I", frame.payload)[0]
            if frame.stream == 0:
                self._window += grant
            elif frame.stream == self._stream:
                self._stream_window += grant
        elif frame.kind == GOAWAY or (frame.kind == RESET and frame.stream == self._stream):
            raise ConnectionError(f"the server ended the call: {frame}")
        return frame
