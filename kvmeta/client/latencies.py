"""How long lookups took lately: what is unusual is asked for a second time, where that is wanted."""

from __future__ import annotations

from collections import deque

LAST = 256
LEAST = 20
FIRST_S = 0.05


class Latencies:
    """The times of the last lookups of one connection."""

    def __init__(self) -> None:
        self._last_s: deque[float] = deque(maxlen=LAST)

    def note(self, seconds: float) -> None:
        """Note how long one took."""
        self._last_s.append(seconds)

    def unusual_s(self) -> float:
        """Return the time that 95 of 100 stayed below; a guess before there are enough of them."""
        if len(self._last_s) < LEAST:
            return FIRST_S
        return sorted(self._last_s)[len(self._last_s) * 95 // 100]
