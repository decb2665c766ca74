"""Where a file lies: 24 bytes, little-endian, one numpy dtype from the caller's array to the disk."""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import InputError

LOCATION: np.dtype[np.void] = np.dtype(
    [("volume", "<u4"), ("length", "<u4"), ("offset", "<u8"), ("checksum", "<u4"), ("tag", "<u4")]
)
"""volume: u4 number of a volume, 0 = unassigned; length, offset: bytes; checksum: CRC-32C of the file's
bytes, 0 = unknown; tag: the user's own label."""


class Location(NamedTuple):
    """One file's location, with the fields of `LOCATION` as Python integers."""

    volume: int = 0
    length: int = 0
    offset: int = 0
    checksum: int = 0
    tag: int = 0


def as_locations(locations: Any, n: int) -> NDArray[np.void]:
    """Return `locations` as a C-contiguous LOCATION[n].

    Accepts a LOCATION array (any strides or byte order of the same fields), a `Location`, or a sequence
    of them. Raises InputError where the dtype, the shape or the length is another.
    """
    if isinstance(locations, Location):
        locations = [locations]
    if not isinstance(locations, np.ndarray):
        try:
            rows = [tuple(map(index, each)) for each in locations]
            locations = np.array(rows, dtype=LOCATION)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"locations: expected LOCATION[n] or a sequence of Location ({error})") from None
    if locations.dtype != LOCATION:
        if locations.dtype.names != LOCATION.names:
            raise InputError(f"locations: expected dtype kvmeta.LOCATION, got {locations.dtype}")
        if any(locations.dtype[name].newbyteorder("<") != LOCATION[name] for name in LOCATION.names or ()):
            raise InputError(f"locations: expected the field types of kvmeta.LOCATION, got {locations.dtype}")
        locations = locations.astype(LOCATION)
    if locations.ndim != 1:
        raise InputError(f"locations: expected one dimension, got shape {locations.shape}")
    if len(locations) != n:
        raise InputError(f"locations: {len(locations)} rows for {n} IDs; both must have the same length")
    return np.ascontiguousarray(locations)
