"""A large call's distinct IDs, before it is split into messages: the numpy form of `engine/distinct.py`.

A call of one message needs none of this: the server removes its duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Distinct:
    """The distinct rows of a call of n IDs.

    `kept` i8[m]: which of the call's rows they are, ascending; `place` i8[n]: which of the distinct rows each
    of the call's has.
    """

    kept: NDArray[np.int64]
    place: NDArray[np.int64]

    @staticmethod
    def of(ids: NDArray[np.void], *, last: bool) -> Distinct:
        """Return the distinct rows of ID[n]; of an ID that comes again the last or the first row is kept."""
        n = len(ids)
        halves = ids.view(np.uint64).reshape(n, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: rows of one ID stay in the call's order
        in_order = halves[order]
        fresh = np.ones(n, np.bool_)
        fresh[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
        firsts = np.flatnonzero(fresh)
        lasts = np.append(firsts, n)[1:] - 1
        winners = order[lasts if last else firsts]
        winner = np.empty(n, np.int64)
        winner[order] = winners[np.cumsum(fresh) - 1]
        kept = np.sort(winners)
        return Distinct(kept, np.searchsorted(kept, winner))

    def winners(self) -> NDArray[np.bool_]:
        """Return bool[n]: whether a row of the call is one of the distinct ones."""
        out = np.zeros(len(self.place), np.bool_)
        out[self.kept] = True
        return out


def share_an_id(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Return whether two columns of IDs, as `sorted_sums`, may share one; never False where they do."""
    if not len(other):
        return False
    place = np.searchsorted(other, one)
    place[place == len(other)] = 0
    return bool((other[place] == one).any())


def sorted_sums(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return a hash of each ID, sorted: equal IDs have equal ones."""
    halves = ids.view(np.uint64).reshape(-1, 2)
    return np.sort(halves[:, 0] + halves[:, 1] * np.uint64(0x9E3779B97F4A7C15))
