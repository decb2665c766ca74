"""The ID bijection: a file ID's 128 bits, mixed until they are uniform whatever the user's IDs look like.

A 3-round Feistel network over (high, low), two u8, whose round function is the splitmix64 finaliser (Steele,
Lea & Flood, 2014; constants of David Stafford's variant 13) of the half plus a round key:

    high ^= F(low  + k0);  low ^= F(high + k1);  high ^= F(low + k2)

The round keys are the first three outputs of splitmix64 seeded with the store's seed. Every step is its own
inverse, so unmixing runs them backwards. Mixed IDs are the stored keys: uniform even for sequential IDs.
`docs/format.md` has test vectors.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DEFAULT_SEED = 0x6B766D6574610001
"""The published seed ("kvmeta", 1). Recorded in every store and segment."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 8192
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@lru_cache(maxsize=16)
def round_keys(seed: int) -> NDArray[np.uint64]:
    """Return the three round keys u8[3] of `seed`, read-only."""
    keys = np.array([_finalise_int((seed + (i + 1) * _GOLDEN) & _MASK) for i in range(3)], np.uint64)
    keys.flags.writeable = False
    return keys


def mix(ids: NDArray[np.void], seed: int = DEFAULT_SEED) -> NDArray[np.uint64]:
    """Return the mixed IDs as u8[n, 2] (high, low) of `ids`, ID[n]."""
    halves = ids.view(">u8").reshape(-1, 2)
    high, low = halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)
    k = round_keys(seed)
    high ^= finalise(low + k[0])
    low ^= finalise(high + k[1])
    high ^= finalise(low + k[2])
    return np.stack([high, low], axis=1)


def mixed_high(ids: NDArray[np.void], seed: int = DEFAULT_SEED) -> NDArray[np.uint64]:
    """Return the high halves u8[n] of the mixed IDs of `ids`, ID[n]: what says where they belong.

    Block by block and in place, so that all of it happens in the processor's cache: a third of the time.
    """
    halves = ids.view(">u8").reshape(-1, 2)
    k = round_keys(seed)
    n = len(halves)
    out = np.empty(n, np.uint64)
    low, scratch, spare = np.empty((3, min(n, _BLOCK)), np.uint64)
    for start in range(0, n, _BLOCK):
        high = out[start : start + _BLOCK]
        m = len(high)
        high[:], low[:m] = halves[start : start + m, 0], halves[start : start + m, 1]
        for into, of, key in ((high, low[:m], k[0]), (low[:m], high, k[1]), (high, low[:m], k[2])):
            x, y = scratch[:m], spare[:m]
            np.add(of, key, out=x)
            np.right_shift(x, _30, out=y)
            np.bitwise_xor(x, y, out=x)
            np.multiply(x, _M1, out=x)
            np.right_shift(x, _27, out=y)
            np.bitwise_xor(x, y, out=x)
            np.multiply(x, _M2, out=x)
            np.right_shift(x, _31, out=y)
            np.bitwise_xor(x, y, out=x)
            np.bitwise_xor(into, x, out=into)
    return out


def unmix(mixed: NDArray[np.uint64], seed: int = DEFAULT_SEED) -> NDArray[np.void]:
    """Return the ID[n] of mixed IDs u8[n, 2]; the inverse of `mix`."""
    high, low = mixed[:, 0].copy(), mixed[:, 1].copy()
    k = round_keys(seed)
    high ^= finalise(low + k[2])
    low ^= finalise(high + k[1])
    high ^= finalise(low + k[0])
    return np.stack([high, low], axis=1).astype(">u8").view("V16").reshape(-1)


def finalise(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the splitmix64 finaliser of each u8."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _finalise_int(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31
