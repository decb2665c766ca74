"""A call's distinct IDs: duplicates are removed before anything is split, stamped or logged.

Of a put or delete the last of an ID wins, of an insert or relocate the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import rows as row_kernels
from kvmeta.engine.kernels import sort
from kvmeta.engine.kernels.layout import ROW_WORDS

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Distinct:
    """The distinct rows of a call of n IDs.

    `rows` u8[m, 6], without versions; `kept` i8[m]: which of the call's rows they are; `place` i8[n]: which
    of the distinct rows each of the call's has (None: the two are the same).
    """

    rows: Words
    kept: NDArray[np.int64]
    place: NDArray[np.int64] | None

    @staticmethod
    def of(ids: Words, locations: Words, keys: Words, *, last: bool) -> Distinct:
        """Return the distinct rows of raw IDs u8[n, 2] and locations u8[n, 3]."""
        n = len(ids)
        rows = np.empty((n, ROW_WORDS), np.uint64)
        row_kernels.fill(ids, locations, np.uint64(0), keys, rows)
        winner = np.empty(n, np.int64)
        if sort.winners(rows, last, winner) == n:
            return Distinct(rows, winner, None)
        kept = np.flatnonzero(winner == np.arange(n))
        return Distinct(rows[kept], kept, np.searchsorted(kept, winner))

    def spread(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a column over the distinct rows as one over the call's."""
        return column if self.place is None else column[self.place]

    def winners(self) -> NDArray[np.bool_]:
        """Return bool[n]: whether a row of the call is one of the distinct ones."""
        if self.place is None:
            return np.ones(len(self.rows), np.bool_)
        out = np.zeros(len(self.place), np.bool_)
        out[self.kept] = True
        return out
