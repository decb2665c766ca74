"""Versions: u8 numbers that order every change of one ID, and the clock that stamps them.

    63            23 22      18 17        8   7   6      0
    +---------------+----------+-----------+-----+--------+
    | ms since 2020 | counter  | node slot | del | moves  |
    +---------------+----------+-----------+-----+--------+
         41 bits       5 bits     10 bits   1 bit  7 bits

One stamp per batch; (ms, counter, slot) is unique to it. A delete sets the tombstone bit; a relocate adds
one to the move count of the version it saw. The larger version wins (`merge` of DESIGN: equal versions fall
back to the larger location bytes, which only a fault can bring about).

The clock is a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) of one u8.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EPOCH_MS = 1_577_836_800_000
"""2020-01-01T00:00:00Z in Unix milliseconds."""

MOVE_BITS = 7
MOVES_MAX = (1 << MOVE_BITS) - 1
TOMBSTONE = 1 << 7
SLOT_SHIFT = 8
SLOT_BITS = 10
COUNTER_SHIFT = 18
COUNTER_BITS = 5
MS_SHIFT = 23
STAMP_STEP = 1 << COUNTER_SHIFT
"""The distance of two successive stamps: counter + 1, its overflow carries into the millisecond."""
VERSION_MAX = (1 << 64) - 1
TTL_S_MAX = 1e10
"""Three centuries: an entry that lives longer never expires."""


class Version(NamedTuple):
    """A version's parts; `unix_ms` is its time in Unix milliseconds."""

    unix_ms: int
    counter: int
    slot: int
    tombstone: bool
    moves: int


def split(version: int) -> Version:
    """Return the parts of a version."""
    value = int(version)
    return Version(
        unix_ms=(value >> MS_SHIFT) + EPOCH_MS,
        counter=value >> COUNTER_SHIFT & (1 << COUNTER_BITS) - 1,
        slot=value >> SLOT_SHIFT & (1 << SLOT_BITS) - 1,
        tombstone=bool(value & TOMBSTONE),
        moves=value & MOVES_MAX,
    )


def join(parts: Version) -> int:
    """Return the version of `parts`; the inverse of `split`."""
    return (
        (parts.unix_ms - EPOCH_MS) << MS_SHIFT
        | parts.counter << COUNTER_SHIFT
        | parts.slot << SLOT_SHIFT
        | (TOMBSTONE if parts.tombstone else 0)
        | parts.moves
    )


def expiry(ttl_s: float | None, unix_ms: int) -> int:
    """Return the version below which entries with `ttl_s` have expired at `unix_ms`; 0 = none."""
    if ttl_s is None or not ttl_s <= TTL_S_MAX:
        return 0
    return max(0, unix_ms - EPOCH_MS - round(ttl_s * 1000)) << MS_SHIFT


def merge(
    held: tuple[NDArray[np.uint64], NDArray[np.void]], incoming: tuple[NDArray[np.uint64], NDArray[np.void]]
) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """Return, entry by entry, the larger of two columns of (versions u8[n], locations LOCATION[n]).

    Commutative, associative and idempotent. Equal versions: the larger location, compared as 24 bytes.
    The kernels apply the same rule to rows; this is its reference and the client's form of it.
    """
    take = incoming[0] > held[0]
    for i in np.flatnonzero(incoming[0] == held[0]):
        take[i] = incoming[1][i].tobytes() > held[1][i].tobytes()
    return np.where(take, incoming[0], held[0]), np.where(take, incoming[1], held[1])


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


class HybridClock:
    """Stamps batches with versions that only rise, whatever the wall clock does.

    `slot` is the node's 10-bit number (embedded: 0). Thread-safe.
    """

    def __init__(self, slot: int = 0, unix_ms: Callable[[], int] = _unix_ms) -> None:
        self._slot = slot << SLOT_SHIFT
        self._unix_ms = unix_ms
        self._last = 0  # (ms, counter) of the last stamp, as one number
        self._ceiling = VERSION_MAX
        self._reserve: Callable[[int], int] | None = None
        self._lock = threading.Lock()

    def be(self, slot: int, ceiling: int, reserve: Callable[[int], int]) -> None:
        """Stamp as node `slot`, above `ceiling`, and never beyond what `reserve` has noted before.

        `reserve(version)` notes durably that stamps may come up to the larger version it returns: a node
        whose clock was set back does not stamp what it stamped in its last life.
        """
        with self._lock:
            self._slot = slot << SLOT_SHIFT
            self._last = max(self._last, ceiling >> COUNTER_SHIFT)
            self._ceiling, self._reserve = 0, reserve

    def stamp(self, count: int = 1) -> int:
        """Return the first of `count` successive versions, `STAMP_STEP` apart, above all seen before."""
        with self._lock:
            wall = (self._unix_ms() - EPOCH_MS) << COUNTER_BITS
            first = max(wall, self._last + 1)
            last = first + count - 1
            if self._reserve is not None and last << COUNTER_SHIFT >= self._ceiling:
                self._ceiling = self._reserve(last << COUNTER_SHIFT)
            self._last = last
        return first << COUNTER_SHIFT | self._slot

    def observe(self, version: int) -> None:
        """Let every later stamp be above `version`."""
        with self._lock:
            self._last = max(self._last, int(version) >> COUNTER_SHIFT)

    def ahead_ms(self, version: int) -> int:
        """Return by how much a version is ahead of the wall clock."""
        return (int(version) >> MS_SHIFT) + EPOCH_MS - self._unix_ms()

    def now_ms(self) -> int:
        """Return the wall clock in Unix milliseconds."""
        return self._unix_ms()
