"""The ID bijection over columns (see `kvmeta.mixing`) and XXH64 (Yann Collet's specification) over bytes."""

import numpy as np

from kvmeta.engine.kernels.layout import PAYLOAD_BYTES
from kvmeta.engine.kernels.memory import byte_swap, load_u8, load_u32, load_u64, njit

U = np.uint64
P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
P4, P5 = U(0x85EBCA77C2B2AE63), U(0x27D4EB2F165667C5)


@njit
def finalise(x):
    """Return the splitmix64 finaliser of a u8."""
    x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
    return x ^ (x >> U(31))


@njit
def mix_one(high, low, keys):
    """Return the mixed halves of an ID's halves."""
    high ^= finalise(low + keys[0])
    low ^= finalise(high + keys[1])
    high ^= finalise(low + keys[2])
    return high, low


@njit
def unmix_one(high, low, keys):
    """Return the ID's halves of mixed halves."""
    high ^= finalise(low + keys[2])
    low ^= finalise(high + keys[1])
    high ^= finalise(low + keys[0])
    return high, low


@njit
def mix(ids, keys, out):
    """Write the mixed IDs of `ids` (u8[n, 2], the 16 bytes as they are) to `out` (u8[n, >= 2])."""
    for i in range(len(ids)):
        out[i, 0], out[i, 1] = mix_one(byte_swap(ids[i, 0]), byte_swap(ids[i, 1]), keys)


@njit
def unmix(rows, keys, out):
    """Write the IDs (their 16 bytes, as u8[n, 2]) of mixed IDs in `rows` (u8[n, >= 2]) to `out`."""
    for i in range(len(rows)):
        high, low = unmix_one(rows[i, 0], rows[i, 1], keys)
        out[i, 0], out[i, 1] = byte_swap(high), byte_swap(low)


@njit
def _rotate(x, bits):
    return (x << U(bits)) | (x >> U(64 - bits))


@njit
def _round(lane, value):
    return _rotate(lane + value * P2, 31) * P1


@njit
def xxh64(address, size, seed):
    """Return the XXH64 of `size` bytes at `address`."""
    at, end = U(address), U(address) + U(size)
    seed = U(seed)
    if size >= 32:
        a, b, c, d = seed + P1 + P2, seed + P2, seed, seed - P1
        while at + U(32) <= end:
            a = _round(a, load_u64(at))
            b = _round(b, load_u64(at + U(8)))
            c = _round(c, load_u64(at + U(16)))
            d = _round(d, load_u64(at + U(24)))
            at += U(32)
        h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
        h = (h ^ _round(U(0), a)) * P1 + P4
        h = (h ^ _round(U(0), b)) * P1 + P4
        h = (h ^ _round(U(0), c)) * P1 + P4
        h = (h ^ _round(U(0), d)) * P1 + P4
    else:
        h = seed + P5
    h += U(size)
    while at + U(8) <= end:
        h = _rotate(h ^ _round(U(0), load_u64(at)), 27) * P1 + P4
        at += U(8)
    if at + U(4) <= end:
        h = _rotate(h ^ (U(load_u32(at)) * P1), 23) * P2 + P3
        at += U(4)
    while at < end:
        h = _rotate(h ^ (U(load_u8(at)) * P5), 11) * P1
        at += U(1)
    h = (h ^ (h >> U(33))) * P2
    h = (h ^ (h >> U(29))) * P3
    return h ^ (h >> U(32))


@njit
def page_checksum(address, seed, page):
    """Return the checksum of the page at `address`: XXH64, seeded by its file's seed and its number."""
    return xxh64(address, PAYLOAD_BYTES, finalise(U(seed) + U(page)))
