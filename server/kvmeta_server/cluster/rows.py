"""Rows between nodes: what is sent, what is told of it, and how several replicas' rows become one. Pure.

A row is u8[6]: mixed ID (2), version, location (3). docs/replication.md says who sends which to whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, ROW_WORDS
from kvmeta.engine.kernels.merge import ACCEPTED, REFUSED, STALE, merge
from kvmeta.protocol.codes import Outcome
from kvmeta_server.cluster.placement import NOBODY

Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]
BUCKETS = 64
"""Digests of a partition."""
_FEW = 1024  # slots; a count of them all walks over every number that a slot may have


class Bound(IntEnum):
    """Up to which version a replica refuses rows that it does not hold; see `peer.Bound`."""

    PROMISED = 0
    """Up to what it promised: of writes and hints."""
    AGREED = 1
    """Up to where all owners agreed: of what a read found at one of them."""
    NONE = 2
    """None is refused: of what a comparison brings."""


class Applied(NamedTuple):
    """What became of rows: outcomes u1[n]; versions u8[n], of STALE ones held, of REFUSED ones promised."""

    outcomes: NDArray[np.uint8]
    versions: Words


class Fetched(NamedTuple):
    """What is held: states u1[n] (ANSWERED, FAILED, FENCED), versions u8[n], locations u8[n, 3] or None."""

    states: NDArray[np.uint8]
    versions: Words
    locations: Words | None


class Page(NamedTuple):
    """Rows u8[n, 6] of a stretch, sorted: all that is held from its first high half to `until`."""

    rows: Rows
    until: int


_OF_WEIGHED = np.zeros(3, np.uint8)
_OF_WEIGHED[ACCEPTED], _OF_WEIGHED[STALE], _OF_WEIGHED[REFUSED] = (
    Outcome.TOOK_EFFECT,
    Outcome.STALE,
    Outcome.REFUSED,
)


def outcomes_of(weighed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return as outcomes what the engine's kernel says of rows that it weighed."""
    return _OF_WEIGHED[weighed]


def merged(parts: list[Rows]) -> Rows:
    """Return sorted rows merged into one: of each ID the largest version."""
    rows = np.concatenate(parts) if parts else np.empty((0, ROW_WORDS), np.uint64)
    ends = np.cumsum([len(part) for part in parts], dtype=np.uint64)
    heads = np.concatenate([np.zeros(1, np.uint64), ends[:-1]]) if parts else np.empty(0, np.uint64)
    out = np.empty_like(rows)
    return out[: merge(rows, heads, ends, np.uint64(0), np.uint64(0), out)]


def aligned(pages: Iterable[Page]) -> tuple[list[Rows], int]:
    """Return the rows of pages of one stretch, each up to where all of them are whole, and where that is."""
    held = list(pages)
    until = min(page.until for page in held)
    return [page.rows[page.rows[:, HIGH] <= np.uint64(until)] for page in held], until


def among(rows: Rows, held: Rows, words: int = ROW_WORDS) -> Mask:
    """Return bool[n]: whether each of `rows` is one of `held`, by its first `words`, or version and all."""
    kind = np.dtype((np.void, rows.itemsize * words))

    def whole(column: Rows) -> NDArray[np.void]:
        return np.ascontiguousarray(column[:, :words]).view(kind).reshape(-1)

    inside: Mask = np.isin(whole(rows), whole(held))
    return inside


def slots_in(*columns: NDArray[np.uint16]) -> list[int]:
    """Return the nodes that columns of slots name, in order."""
    named: set[int] = set()
    for column in columns:
        few = column.size < _FEW
        named.update((column if few else np.flatnonzero(np.bincount(column.reshape(-1)))).ravel().tolist())
    return sorted(named - {NOBODY})


def shares(slots: NDArray[np.uint16], wanted: Mask | None = None) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each node that `slots` (u2[n]) names, and the rows i8[m] that are its share, of those wanted."""
    for slot in slots_in(slots if wanted is None else slots[wanted]):
        mine = slots == slot
        yield slot, np.flatnonzero(mine if wanted is None else mine & wanted)
