"""What a batch's call returns: columns, one row an ID of the call, in the call's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import InputError


@dataclass(frozen=True)
class Hits:
    """A lookup's result. `found` bool[n]; `locations` LOCATION[n] and `versions` u8[n], zero where absent.

    `failed` bool[n]: could not be answered (with on_error="mask"); `found` means something only where it is
    False.
    """

    found: NDArray[np.bool_]
    locations: NDArray[np.void]
    versions: NDArray[np.uint64]
    failed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.found)


@dataclass(frozen=True)
class Inserted:
    """An insert's result. `inserted` bool[n]: the ID was absent and now has the given location.

    `locations` LOCATION[n] and `versions` u8[n] are those held now: the existing ones where it is False, the
    given ones where it is True. An ID that comes again within the call answers False.
    """

    inserted: NDArray[np.bool_]
    locations: NDArray[np.void]
    versions: NDArray[np.uint64]
    failed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.inserted)


class Outcome(IntEnum):
    """Why a relocate did or did not take effect, one of these an ID."""

    RELOCATED = 0
    ABSENT = 1
    """No live entry is held."""
    CHANGED = 2
    """Another version is held than the caller saw: look up again."""
    EXHAUSTED = 3
    """The entry was moved 127 times since its last put: put it again."""
    REPEATED = 4
    """The ID came earlier in the same call."""
    FAILED = 5
    """The held entry could not be read."""


@dataclass(frozen=True)
class Relocated:
    """A relocate's result. `relocated` bool[n]; `outcomes` u1[n] say why not (`Outcome`)."""

    relocated: NDArray[np.bool_]
    outcomes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.relocated)

    def reason(self, i: int) -> str:
        """Return the outcome of row i as a lower-case word, such as "changed"."""
        return Outcome(int(self.outcomes[i])).name.lower()


@dataclass(frozen=True)
class ScanPage:
    """A page of a scan: `ids` ID[n], `locations` LOCATION[n], `versions` u8[n].

    `cursor` (16 bytes) continues behind this page: `scan(after=page.cursor)`.
    """

    ids: NDArray[np.void]
    locations: NDArray[np.void]
    versions: NDArray[np.uint64]
    cursor: bytes

    def __len__(self) -> int:
        return len(self.ids)


def as_batches(batches: object) -> Iterator[tuple[Any, Any]]:
    """Yield the (ids, locations) pairs of a load; InputError where it is not an iterable of such pairs."""
    expected = "batches: expected an iterable of (ids, locations) pairs"
    if not isinstance(batches, Iterable):
        raise InputError(f"{expected}, got {type(batches).__name__}")
    for i, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(f"{expected}; batch {i} is a {type(batch).__name__}")
        yield batch[0], batch[1]


def as_versions(versions: object, n: int) -> NDArray[np.uint64]:
    """Return `versions` as a C-contiguous u8[n]; InputError where dtype, shape or length is another."""
    array = np.asarray(versions)
    if array.size and (array.dtype.kind != "u" or array.dtype.itemsize != 8 or array.ndim != 1):
        raise InputError(f"versions: expected uint64[n] as looked up, got {array.dtype}{list(array.shape)}")
    if len(array) != n:
        raise InputError(f"versions: {len(array)} rows for {n} IDs; both must have the same length")
    return np.ascontiguousarray(array, np.uint64)
