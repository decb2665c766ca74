"""Connections that say nothing: some not a byte, some no more than HTTP/2's greeting."""

from __future__ import annotations

import time

from tests.hostile.wire import Wire

CONNECTIONS = 4000


class Silence:
    """CONNECTIONS connections, held."""

    def __init__(self, address: str, scale: float) -> None:
        count = round(CONNECTIONS * scale)
        self._held = [Wire(address, hello=i % 2 == 0) for i in range(count)]

    def step(self) -> None:
        """Hold them."""
        time.sleep(0.05)
