"""A plan for reading files: locations grouped by volume, sorted by offset, near neighbours together.

Reading costs one request for each *extent*, a stretch of a volume that holds near neighbours; a sorted batch
of small files therefore reads like a few large ones. Nothing here does I/O.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAP_BYTES_MAX = 64 << 10
"""Neighbours at most this far apart are read in one request: skipping costs less than another."""
EXTENT_BYTES_MAX = 8 << 20


def volume_numbers(locations: NDArray[np.void], wanted: NDArray[np.bool_]) -> list[int]:
    """Return the numbers of the volumes that reading `locations` (LOCATION[n]) where `wanted` needs."""
    numbers: list[int] = np.unique(locations["volume"][wanted]).tolist()
    return numbers


def extents(locations: NDArray[np.void], wanted: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the rows (i8[m]) of each extent that reading `locations` (LOCATION[n]) where `wanted` takes.

    An extent ends where the volume changes, the gap is wide or the stretch grows too long.
    """
    rows = np.flatnonzero(wanted)
    order = rows[np.lexsort((locations["offset"][rows], locations["volume"][rows]))]
    if not len(order):
        return []
    volume, offset = locations["volume"][order], locations["offset"][order].astype(np.int64)
    first = np.flatnonzero(np.append(True, volume[1:] != volume[:-1]))
    ends = np.split(offset + locations["length"][order], first[1:])
    end = np.concatenate([np.maximum.accumulate(part) for part in ends])  # of all files so far in the volume
    fresh = (volume[1:] != volume[:-1]) | (offset[1:] - end[:-1] > GAP_BYTES_MAX)
    fresh |= offset[1:] // EXTENT_BYTES_MAX != offset[:-1] // EXTENT_BYTES_MAX
    return np.split(order, np.flatnonzero(fresh) + 1)
