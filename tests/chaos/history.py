"""A history of operations, and whether a store that promises what docs/replication.md says can have had it.

    began ├──────── an operation on one ID ────────┤ ended        (one monotonic clock for all clients)

A write is ordered before another where it had ended, acknowledged, before the other began. A write of unknown
outcome may take effect at any time from its beginning on, and so may one that the SDK sent twice
(docs/operating.md: "a put may be done twice"). A write is *settled* from when it was acknowledged or a quorum
had read it. Judged, ID by ID:

    invented   a read returns what nobody had attempted to write
    lost       a read returns a write, or nothing, that is ordered before a write settled when the read began
    backwards  a version is smaller than one that was told before the read began
    ambiguous  one version, two values
    twins      two inserts into one absence, or two relocates of one version: counted, for they are allowed
               while a network is parted

What says that an ID is absent (a miss, an insert that succeeds) has the same duty as a read. A fast read may
return an old value, but its misses are judged. Answers that are no answers are never judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROW = np.dtype(
    [
        ("kind", "u1"), ("told", "u1"), ("id", "u4"), ("wrote", "u8"), ("saw", "u8"), ("version", "u8"),
        ("began", "i8"), ("ended", "i8"),
    ]
)  # fmt: skip
"""One operation on one ID. `wrote`: the attempt's number (0: a delete). `saw`: the attempt whose value was
seen (0: nothing); of a relocate, before it. `version`: of what was seen, or inserted; 0: not told. Times in
nanoseconds."""

GARBLED = (1 << 64) - 1
"""As `saw`: a value that is none that was written."""
FOREVER = np.iinfo(np.int64).max
_NEVER = np.iinfo(np.int64).min


class Kind(IntEnum):
    """What was asked."""

    PUT = 0
    DELETE = 1
    INSERT = 2
    RELOCATE = 3
    LOOKUP = 4
    FAST = 5


class Told(IntEnum):
    """What was answered."""

    DONE = 0
    """A write is acknowledged, a read answered."""
    UNKNOWN = 1
    """A write may take effect; a read has no answer."""
    HELD = 2
    """An insert found the ID held."""
    ABSENT = 3
    """A relocate found the ID absent."""
    CHANGED = 4
    """A relocate found another version than the one seen before."""
    TWICE = 5
    """A put or delete is acknowledged, and was sent before without an answer: it may take effect again."""


class Violation(NamedTuple):
    """A row that cannot be, and why."""

    rule: str
    id: int
    text: str
    row: Any


class Twins(NamedTuple):
    """Two writes of which only one should have succeeded, and when both were under way."""

    id: int
    began: int
    ended: int


@dataclass
class Verdict:
    """What is wrong with a history."""

    violations: list[Violation] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)


def check(rows: NDArray[Any]) -> Verdict:
    """Judge a history ROW[n], in any order."""
    verdict = Verdict()
    rows = rows[np.argsort(rows["id"], kind="stable")]
    for own in np.split(rows, np.flatnonzero(np.diff(rows["id"])) + 1):
        if len(own):
            _Life(own).judge(verdict)
    return verdict


def explain(rows: NDArray[Any], one_id: int) -> Iterator[str]:
    """Yield the operations on an ID, a line each, in the order in which they began."""
    own = rows[rows["id"] == one_id]
    own = own[np.argsort(own["began"])]
    origin = int(own["began"][0])
    for row in own:
        began, ended = (int(row[name]) - origin for name in ("began", "ended"))
        yield (
            f"{began / 1e9:10.4f} {ended / 1e9:10.4f}  {Kind(row['kind']).name:8} {Told(row['told']).name:8} "
            f"wrote {row['wrote']:<14} saw {row['saw']:<14} version {row['version']}"
        )


class _Life:
    """What happened to one ID."""

    def __init__(self, rows: NDArray[Any]) -> None:
        kind, told = rows["kind"], rows["told"]
        done = told == Told.DONE
        is_write = (kind <= Kind.RELOCATE) & (done | (told == Told.UNKNOWN) | (told == Told.TWICE))
        self.id = int(rows["id"][0])
        self.writes = rows[is_write]
        self.acknowledged = np.where(told[is_write] == Told.UNKNOWN, FOREVER, self.writes["ended"])
        self.latest = np.where(done[is_write], self.writes["ended"], FOREVER)
        self.puts = self.writes["wrote"] != 0
        # What a quorum saw. An insert that succeeded saw nothing, whatever it tells as its version.
        self.seen = rows[
            (kind == Kind.LOOKUP) & done
            | (kind == Kind.RELOCATE) & (done | (told == Told.ABSENT))
            | (kind == Kind.INSERT) & (done | (told == Told.HELD))
        ].copy()
        absent = self.seen["told"] == Told.ABSENT  # a relocate's row has what its caller had seen before
        self.seen["saw"][absent] = self.seen["version"][absent] = 0
        self.hits = self.seen["saw"] != 0
        fast = rows[(kind == Kind.FAST) & done]
        self.fast_hits, self.fast_misses = fast[fast["saw"] != 0], fast[fast["saw"] == 0]

    def judge(self, verdict: Verdict) -> None:
        tell = verdict.violations.append
        hits = np.concatenate([self.seen[self.hits], self.fast_hits])
        source = self._sources(hits)
        for row in hits[source < 0]:
            tell(Violation("invented", self.id, "nobody had attempted to write it", row))
        quorum = source[: int(self.hits.sum())]
        if not (source < 0).any():  # else who wrote what is seen is not known
            for row in self._lost(self.seen[self.hits], quorum):
                tell(Violation("lost", self.id, "it is older than a write settled before", row))
        for row in self._backwards():
            tell(Violation("backwards", self.id, "a larger version was told before", row))
        for row in self._ambiguous(hits, source):
            tell(Violation("ambiguous", self.id, "its version was told with another value", row))
        verdict.twins.extend(self._twins())

    def _sources(self, hits: NDArray[Any]) -> NDArray[np.int64]:
        """Return which write each hit saw, -1 where there was none by then."""
        values = np.where(self.puts, self.writes["wrote"], 0)
        order = np.argsort(values, kind="stable")
        at = np.searchsorted(values[order], hits["saw"])
        at = order[np.minimum(at, max(0, len(order) - 1))] if len(order) else np.zeros(len(hits), np.int64)
        known = np.zeros(len(hits), np.bool_)
        if len(order):
            known = (self.writes["wrote"][at] == hits["saw"]) & (self.writes["began"][at] < hits["ended"])
        return np.where(known, at, -1)

    def _lost(self, hits: NDArray[Any], source: NDArray[np.int64]) -> Iterator[Any]:
        settled = self.acknowledged.copy()
        np.minimum.at(settled, source, hits["ended"])
        ends, begun = _running_max(settled, self.writes["began"])

        def before(reads: NDArray[Any]) -> NDArray[np.int64]:
            """Return when the youngest write began that was settled before each read did."""
            return begun[np.searchsorted(ends, reads["began"], side="left")]

        yield from hits[self.latest[source] < before(hits)]
        misses = np.concatenate([self.seen[~self.hits], self.fast_misses])
        starts, until = _running_max(self.writes["began"][~self.puts], self.latest[~self.puts])
        yield from misses[until[np.searchsorted(starts, misses["ended"], side="left")] < before(misses)]

    def _backwards(self) -> Iterator[Any]:
        told = self.seen[self.seen["version"] != 0]
        versions = told["version"].astype(np.int64)
        moved = (told["kind"] == Kind.RELOCATE) & (told["told"] == Told.DONE)
        ends, floor = _running_max(told["ended"], versions + moved)
        reads = told["saw"] != 0
        yield from told[reads][versions[reads] < floor[np.searchsorted(ends, told["began"][reads])]]

    def _ambiguous(self, hits: NDArray[Any], source: NDArray[np.int64]) -> Iterator[Any]:
        order = np.argsort(hits["version"], kind="stable")
        a, b = order[:-1], order[1:]
        same = (hits["version"][a] == hits["version"][b]) & (hits["saw"][a] != hits["saw"][b])
        both = (source[a] >= 0) & (source[b] >= 0)
        moved = self.writes["kind"] == Kind.RELOCATE
        if len(moved):  # two relocates of one version have one version: twins
            same &= ~(both & moved[source[a]] & moved[source[b]])
        yield from hits[b[same]]

    def _twins(self) -> Iterator[Twins]:
        done = self.writes[self.latest != FOREVER]
        inserts = done[done["kind"] == Kind.INSERT]
        inserts = inserts[np.argsort(inserts["began"])]
        deletes, gone = self.writes["began"][~self.puts], self.latest[~self.puts]
        for first, second in pairwise(inserts):
            between = (deletes < second["ended"]) & (gone > first["began"])
            if first["ended"] > second["began"] and not between.any():
                yield Twins(self.id, int(first["began"]), int(second["ended"]))
        moves = done[done["kind"] == Kind.RELOCATE]
        moves = moves[np.argsort(moves["version"], kind="stable")]
        for first, second in pairwise(moves):
            if first["version"] == second["version"]:
                both = [int(each[name]) for each in (first, second) for name in ("began", "ended")]
                yield Twins(self.id, min(both), max(both))


def _running_max(keys: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted keys k[n] and of values m[n + 1]: m[i] is the largest of the i smallest keys."""
    order = np.argsort(keys, kind="stable")
    first = np.array([_NEVER], np.int64)
    return keys[order], np.maximum.accumulate(np.concatenate([first, values[order].astype(np.int64)]))
