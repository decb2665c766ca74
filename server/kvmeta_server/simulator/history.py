"""What clients were told, and what may never be otherwise after it.

Of each ID there is a *floor*: the largest version that a client was told of, by the acknowledgement of its
write or by a quorum read. Whatever begins after that is held against it:

    a quorum read        returns the floor or something newer; nothing at all only if the floor is a deletion
    an acknowledgement   is of a version above the floor (per-ID order of acknowledged writes)
    a fast read          returns only what some client once wrote; that nothing is there is a quorum's answer
    a relocate           took effect on exactly the version seen, one move later
    a refusal            of an insert or a relocate is true: no read ever returns what it would have written

A write that is not acknowledged, or of which nobody knows, may take effect at any time, and raises no floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kvmeta.version import MOVE_BITS, TOMBSTONE

Key = bytes
Place = tuple[int, int, int]


class Violation(AssertionError):  # noqa: N818 - what was violated is said by its message
    """A promise that was broken."""


class Sent(NamedTuple):
    """What was sent to replicas of an ID at last for a client's write."""

    version: int
    epoch: int


@dataclass(frozen=True)
class Floor:
    """What clients know of an ID: a version, and where it lies (None: unknown, or a deletion)."""

    version: int = 0
    place: Place | None = None

    @property
    def absent(self) -> bool:
        """Return whether it says that nothing is there."""
        return not self.version or bool(self.version & TOMBSTONE)


NOTHING = Floor()


class History:
    """The floors, and what was tried."""

    def __init__(self) -> None:
        self.floors: dict[Key, Floor] = {}
        self.written: dict[Key, set[Place]] = {}
        self.told: dict[Key, set[Place]] = {}
        """What reads returned."""
        self.deletes: dict[Key, list[Mapping[Key, Sent]]] = {}
        """What deletes that are not acknowledged have sent to replicas so far, by ID."""
        self.deleted: dict[Key, int] = {}
        """The newest version of an acknowledged delete, by ID."""
        self.acknowledged = 0
        self.read = 0

    def begin(self, keys: Iterable[Key]) -> dict[Key, Floor]:
        """Return the floors as an operation begins."""
        return {key: self.floors.get(key, NOTHING) for key in keys}

    def attempt(self, key: Key, place: Place) -> None:
        """Note that somebody tries to write a location."""
        self.written.setdefault(key, set()).add(place)

    def refuse(self, key: Key, place: Place, what: str) -> None:
        """Take in that a location was not written, as its client was told."""
        self.written[key].discard(place)
        if place in self.told.get(key, ()):
            raise Violation(f"{what} of {key.hex()} to {place} is refused, and a read returned it before")

    def attempt_delete(self, key: Key, sent: Mapping[Key, Sent]) -> None:
        """Note that somebody tries to delete an ID; `sent` fills while they do."""
        self.deletes.setdefault(key, []).append(sent)

    def may_be_gone(self, key: Key, version: int) -> bool:
        """Return whether a delete above a version was acknowledged, or may take effect though it was not.

        Its tombstone may have been dropped since: then nothing at all is held, in the version's place.
        """
        tried = (sent[key].version for sent in self.deletes.get(key, ()) if key in sent)
        return max(tried, default=0) > version or self.deleted.get(key, 0) > version

    def deletion(self, key: Key, before: Floor, version: int) -> None:
        """Take in an acknowledged delete."""
        self.deleted[key] = max(version, self.deleted.get(key, 0))
        self.acknowledge(key, before, version, None, "a delete")

    def inserted(self, key: Key, before: Floor, version: int, place: Place) -> None:
        """Take in an insert that took effect."""
        if not before.absent and not self.may_be_gone(key, before.version):
            raise Violation(f"an insert of {key.hex()} took effect, and {before.version} was known before")
        self.acknowledge(key, before, version, place, "an insert")

    def acknowledge(self, key: Key, before: Floor, version: int, place: Place | None, what: str) -> None:
        """Take in an acknowledged write that began when the floor was `before`."""
        if version <= before.version:
            raise Violation(
                f"{what} of {key.hex()} is acknowledged with {version}, and {before.version} was known before"
            )
        self.acknowledged += 1
        self._raise(key, Floor(version, place))

    def answer(
        self, key: Key, before: Floor, version: int, place: Place, what: str, *, settles: bool = True
    ) -> None:
        """Take in what a quorum read returned: version 0 where nothing is held.

        `settles`: whether it repaired what differed, so that later reads return nothing older.
        """
        self.read += 1
        gone = version == 0 and (before.absent or self.may_be_gone(key, before.version))
        if version < before.version and not gone:
            raise Violation(f"{what} of {key.hex()} returns {version}, and {before.version} was known before")
        if version and not version & TOMBSTONE:
            self._check_written(key, place, what)
        if version == before.version and before.place is not None and place != before.place:
            raise Violation(f"{what} of {key.hex()}: {version} is {place} and was {before.place}")
        if settles and version:
            self._raise(key, Floor(version, None if version & TOMBSTONE else place))

    def answer_fast(self, key: Key, before: Floor, version: int, place: Place) -> None:
        """Take in a fast read: a hit may be old, a miss is a quorum's."""
        self.read += 1
        if not version or version & TOMBSTONE:
            gone = before.absent or self.may_be_gone(key, before.version)
            if not gone and version < before.version:
                raise Violation(f"a fast read misses {key.hex()}, and {before.version} was known before")
        else:
            self._check_written(key, place, "a fast read")

    def relocated(self, key: Key, before: Floor, seen: int, place: Place) -> None:
        """Take in a relocate that took effect."""
        if before.version >> MOVE_BITS > seen >> MOVE_BITS or before.version > seen + 1:
            raise Violation(
                f"a relocate of {key.hex()} from {seen} took effect, and {before.version} was known before"
            )
        self.acknowledged += 1
        self._raise(key, Floor(seen + 1, place))

    def _check_written(self, key: Key, place: Place, what: str) -> None:
        if place not in self.written.get(key, ()):
            raise Violation(f"{what} of {key.hex()} returns {place}, which nobody wrote or which was refused")
        self.told.setdefault(key, set()).add(place)

    def _raise(self, key: Key, floor: Floor) -> None:
        if floor.version > self.floors.get(key, NOTHING).version:
            self.floors[key] = floor
