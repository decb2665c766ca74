"""Digests of a stretch of the hash order: what replicas compare to find out where they differ."""

import numpy as np

from kvmeta.engine.kernels.hashing import finalise
from kvmeta.engine.kernels.layout import HIGH, ROW_WORDS, VERSION
from kvmeta.engine.kernels.memory import njit

U = np.uint64
_TOMBSTONE = U(0x80)
_STEP = U(0x9E3779B97F4A7C15)


@njit
def digest(rows, shift, first_bucket, cut, purged, expired, out):
    """XOR the hash of each row of `rows` (u8[n, 6]) into its bucket of `out` (u8[m]).

    A row's bucket is its high half >> `shift`, counted from `first_bucket`. Left out are rows with versions
    above `cut` or below `expired`, and tombstones up to `purged`. A row's hash is the splitmix64 finaliser
    over its six words in turn: h = F(h + word + step).
    """
    for i in range(len(rows)):
        version = rows[i, VERSION]
        if version > cut or version < expired or (version & _TOMBSTONE and version <= purged):
            continue
        h = U(0)
        for w in range(ROW_WORDS):
            h = finalise(h + rows[i, w] + _STEP)
        out[(rows[i, HIGH] >> shift) - first_bucket] ^= h
