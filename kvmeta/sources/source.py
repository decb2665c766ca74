"""What a source is: a file that holds many files, and tells where each of them lies.

A kind of source is one module with a `scan`, and one row in `kinds.py`. Everything else of an index run is
the same for all kinds: IDs, volumes, batches, progress, errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

ROWS_MAX = 65_536
"""Members in one batch."""


@dataclass(frozen=True)
class Members:
    """Some members of one source, as columns of n rows.

    `names` uint8[]: the names' bytes as stored, back to back, a leading "./" taken off; name i ends at
    `name_ends[i]` (int64[n]). `offsets` uint64[n]: where in the file the member's first byte is. `lengths`
    uint64[n]: bytes, below 2**32. `checksums` uint32[n]: CRC-32C of the bytes, 0 where not asked for.
    `skipped`: links, devices, sparse files and unknown entries met since the batch before.
    """

    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint64]
    checksums: NDArray[np.uint32]
    skipped: int

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, row: int) -> bytes:
        """Return the name of one member."""
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : int(self.name_ends[row])].tobytes()


class Scan(Protocol):
    """What reads a kind of source."""

    def __call__(self, path: Path, *, checksums: bool) -> Iterator[Members]:
        """Yield the members of the source at `path`, in its order, up to `ROWS_MAX` at a time.

        With `checksums=False` the members' bytes are not read for their sake, and checksums are 0. Batches
        yielded before an error are right.
        """


class Kind(NamedTuple):
    """A kind of source: its name, the endings of its files' names, what reads it."""

    name: str
    endings: tuple[str, ...]
    scan: Scan
