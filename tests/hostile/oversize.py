"""Messages of 200 MB: some say so, some say less, and all go on as long as the server takes bytes."""

from __future__ import annotations

from tests.hostile.wire import Wire, data_frames, message

BYTES = 200 << 20
CONNECTIONS = 20
_PIECE = bytes(1 << 20)


class Oversize:
    """CONNECTIONS connections that send too much."""

    def __init__(self, address: str, scale: float) -> None:
        self._wires = [Wire(address) for _ in range(max(1, round(CONNECTIONS * scale)))]

    def step(self) -> None:
        """Send up to BYTES on one stream of each connection, until the server stops it."""
        for number, wire in enumerate(self._wires):
            stream = wire.next_stream()
            told = BYTES if number % 2 else 1000
            if not wire.send(
                wire.headers(stream=stream) + data_frames(stream, message(b"", size=told), end=False)
            ):
                continue
            for _ in range(BYTES // len(_PIECE)):
                wire.drain()
                if not wire.send(data_frames(stream, _PIECE, end=False)):
                    break
