"""Programs of a dataset: batches as messages, a few at once, each to the servers that own its IDs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage
from kvmeta.batch import Outcome as Relocation
from kvmeta.client.calls import Call, Program, ask, call_of, raise_first, send
from kvmeta.client.distinct import Distinct, share_an_id, sorted_sums
from kvmeta.client.options import ClientOptions
from kvmeta.client.routing import Router
from kvmeta.errors import DeadlineError, InputError, KvmetaError, OutcomeUnknownError, UnavailableError
from kvmeta.ids import ID, as_ids
from kvmeta.location import LOCATION, Location, as_locations
from kvmeta.protocol.codes import Outcome, State
from kvmeta.protocol.columns import CODE, LZ4, PLAIN, fill, unpack, unpack_up_to
from kvmeta.protocol.messages import ColumnMessage, parse
from kvmeta.store import CURSOR_BYTES, Scan
from kvmeta.v1 import kvmeta_pb2 as pb

Ids = NDArray[np.void]
Locations = NDArray[np.void]
Versions = NDArray[np.uint64]
Part = slice | NDArray[np.int64]
"""Which rows of a call a message is about: a stretch of them, or their numbers."""
# A member of an enumeration is slow to name.
_FOUND, _FAILED, _UNAVAILABLE = int(State.FOUND), int(State.FAILED), int(State.UNAVAILABLE)
_NO_ANSWER = (UnavailableError, DeadlineError)


class DatasetPrograms:
    """What a dataset asks, all columns checked before; `rows_max` is the server's limit for a message.

    `number` is the dataset's, 0 where it is not known: then its name alone says which is meant.
    """

    def __init__(
        self,
        name: str,
        options: ClientOptions,
        rows_max: int,
        router: Router | None = None,
        number: int = 0,
    ) -> None:
        self.name = name
        self.options = options
        self.rows_max = rows_max
        self._router = router or Router(())
        fast = options.consistency == "fast"
        consistency = pb.CONSISTENCY_FAST if fast else pb.CONSISTENCY_UNSPECIFIED
        self._packing = LZ4 if options.compression == "lz4" else PLAIN
        self._number = number
        self._consistency = consistency
        self._meant: tuple[bytes, pb.Meant] = b"", pb.Meant(dataset=number)
        self._lookup_head = self._head_of_lookups()

    def _head_of_lookups(self) -> pb.LookupRequest:
        return pb.LookupRequest(
            dataset=self.name, meant=self._meant[1], reply_compression=self._packing,
            consistency=self._consistency,
        )  # fmt: skip

    def _note_cluster(self) -> None:
        """Say from now on of which cluster the dataset is, where that is known."""
        cluster = self._router.cluster
        if cluster != self._meant[0]:
            self._meant = cluster, pb.Meant(dataset=self._number, cluster=cluster)
            self._lookup_head = self._head_of_lookups()

    def lookup(self, ids: Ids, *, mask: bool = False) -> Program[Hits]:
        """Look up ID[n]; damage is told in `failed`, with `mask` also what no server answers."""
        n = len(ids)
        # Every row is written by a reply, or an error is raised, or masks it.
        states, versions = np.empty(n, np.uint8), np.empty(n, np.uint64)
        locations = np.empty(n, LOCATION)
        try:
            yield from self._find_ways()
        except _NO_ANSWER:
            if not mask:
                raise

        def take(part: Part, raw: bytes) -> None:
            reply = parse(pb.LookupResponse, raw)
            self._router.saw(reply.epoch)
            fill(reply.states, states, part, "states")
            fill(reply.locations, locations, part, "locations")
            fill(reply.versions, versions, part, "versions")

        def calls() -> Iterator[Call]:
            for to, part in ways:
                message = ColumnMessage.of(self._lookup_head, self._packing, ids=ids[part])
                yield call_of("Lookup", message, partial(take, part), to)

        ways = self._ways(ids, min(self.options.lookup_rows, self.rows_max))
        while ways:
            errors = yield calls()
            raise_first([None if mask and isinstance(error, _NO_ANSWER) else error for error in errors])
            for (_, part), error in zip(ways, errors, strict=False):
                if error is not None:
                    states[part], versions[part] = _UNAVAILABLE, 0
                    locations[part] = np.zeros(1, LOCATION)
            ways = ways[len(errors) :]  # after an error no more were sent
        return Hits(states == _FOUND, locations, versions, states >= _FAILED)

    def get(self, one_id: Ids) -> Program[Location | None]:
        """Return the location of ID[1]: a call with ordinary fields, which costs less than a batch of one."""
        yield from self._find_ways()
        request = pb.GetRequest(
            dataset=self.name,
            meant=self._meant[1],
            entry=pb.EntryName(id=one_id.tobytes()),
            consistency=self._consistency,
        )
        ((to, _),) = self._router.split(one_id)
        reply: pb.GetResponse = yield from ask("Get", request, to=to)
        if not reply.HasField("location"):
            return None
        found = reply.location
        return Location(found.volume, found.length, found.offset, found.checksum, found.tag)

    def put(self, ids: Ids, locations: Locations) -> Program[None]:
        """Put ID[n]."""
        (yield from self._write(pb.OPERATION_PUT, ids, locations)).check(self.name, None)

    def delete(self, ids: Ids) -> Program[None]:
        """Delete ID[n]."""
        (yield from self._write(pb.OPERATION_DELETE, ids, None)).check(self.name, None)

    def insert(self, ids: Ids, locations: Locations) -> Program[Inserted]:
        """Insert ID[n]; damage is told in `failed`."""
        written = yield from self._write(pb.OPERATION_INSERT, ids, locations)
        took_effect = written.outcomes == Outcome.TOOK_EFFECT
        inserted, failed = took_effect & written.winners, ~took_effect & (written.outcomes != Outcome.EXISTS)
        result = Inserted(inserted, written.locations, written.versions, failed)
        written.check(self.name, result)
        return result

    def relocate(self, ids: Ids, locations: Locations, versions: Versions) -> Program[Relocated]:
        """Relocate ID[n]; damage is told in `outcomes`."""
        written = yield from self._write(pb.OPERATION_RELOCATE, ids, locations, versions)
        outcomes = written.outcomes.copy()
        outcomes[outcomes > Relocation.FAILED] = Relocation.FAILED  # not acknowledged, or of a newer server
        outcomes[~written.winners] = Relocation.REPEATED
        result = Relocated(outcomes == Relocation.RELOCATED, outcomes)
        written.check(self.name, result)
        return result

    def load(self, batches: Iterable[tuple[Any, Any]]) -> Program[int]:
        """Put (ids, locations) batches in their order and return the rows put.

        Messages under way at once may take effect in any order, so one that shares an ID with another waits
        until that is done.
        """
        yield from self._find_ways()
        parts = self._checked_parts(batches)
        held = next(parts, None)
        rows = 0

        missing: list[int] = []

        def take(raw: bytes) -> None:
            reply = parse(pb.WriteResponse, raw)
            self._router.saw(reply.epoch)
            told = unpack_up_to(reply.outcomes, CODE, self.rows_max, "outcomes")
            missing.append(int(np.count_nonzero(told)))

        def calls() -> Iterator[Call]:
            nonlocal held, rows
            flying: deque[NDArray[np.uint64]] = deque(maxlen=self.options.in_flight)
            while held is not None:
                to, ids, locations = held
                sums = sorted_sums(ids)
                if any(share_an_id(sums, other) for other in flying):
                    return
                flying.append(sums)
                rows += len(ids)
                yield self._write_call(pb.OPERATION_PUT, ids, locations, None, take, to)
                held = next(parts, None)

        while held is not None:
            raise_first((yield calls()))
            if any(missing):
                raise _unacknowledged(self.name, sum(missing))
        return rows

    def scan_page(self, scan: Scan) -> Program[tuple[ScanPage, bool]]:
        """Return the next page, which may be empty, and whether it is the last."""
        rows_max = min(scan.page_rows, self.rows_max)
        request = pb.ScanRequest(
            dataset=self.name,
            meant=self._meant[1],
            page_rows=rows_max,
            sample=float(scan.sample),
            tag=scan.tag,
            after=scan.after or b"",
            shard_index=int(scan.shard[0]),
            shard_count=int(scan.shard[1]),
            reply_compression=self._packing,
        )
        pages: list[tuple[ScanPage, bool]] = []

        def take(raw: bytes) -> None:
            reply = parse(pb.ScanResponse, raw)
            ids = unpack_up_to(reply.ids, ID, rows_max, "ids").copy()
            locations, versions = np.empty(len(ids), LOCATION), np.empty(len(ids), np.uint64)
            everything = slice(0, len(ids))
            fill(reply.locations, locations, everything, "locations")
            fill(reply.versions, versions, everything, "versions")
            moves = len(reply.cursor) == CURSOR_BYTES and reply.cursor > (scan.after or b"")
            if not moves and not reply.done:
                raise InputError(f"cursor: {reply.cursor!r} does not continue {scan.after!r}")
            pages.append((ScanPage(ids, locations, versions, reply.cursor), reply.done))

        yield from send(call_of("Scan", request, take))
        return pages[0]

    def _write(
        self,
        operation: pb.Operation,
        ids: Ids,
        locations: Locations | None,
        versions: Versions | None = None,
    ) -> Program[_Written]:
        """Write ID[n] in messages of up to `rows_max`; an error's `.failed` marks all not acknowledged."""
        first_wins = operation in (pb.OPERATION_INSERT, pb.OPERATION_RELOCATE)
        place: NDArray[np.int64] | None = None
        winners = np.ones(len(ids), np.bool_)
        if len(ids) > self.rows_max:  # several messages, under way at once: no ID may be in two of them
            distinct = Distinct.of(ids, last=not first_wins)
            place, winners = distinct.place, distinct.winners()
            ids = ids[distinct.kept]
            locations = None if locations is None else locations[distinct.kept]
            versions = None if versions is None else versions[distinct.kept]
        yield from self._find_ways()
        written = _Written.empty(len(ids), first_wins)
        ways = self._ways(ids, self.rows_max)

        def take(part: Part, raw: bytes) -> None:
            reply = parse(pb.WriteResponse, raw)
            self._router.saw(reply.epoch)
            written.take(operation, part, reply)

        def calls() -> Iterator[Call]:
            for to, part in ways:
                own = None if locations is None else locations[part]
                seen = None if versions is None else versions[part]
                yield self._write_call(operation, ids[part], own, seen, partial(take, part), to)

        errors = yield calls()
        failed = np.ones(len(ids), np.bool_)
        for (_, part), error in zip(ways, errors, strict=False):  # after an error no more are sent
            failed[part] = error is not None
        error = next((error for error in errors if error is not None), None)
        written = replace(written, unacknowledged=failed | written.unacknowledged, error=error)
        return written.spread(place, winners)

    def _find_ways(self) -> Program[None]:
        """Ask for the cluster's map where there is one and it is not known, or known to be old."""
        if not self._router.needs_map:
            return
        try:
            yield from send(call_of("GetMap", pb.GetMapRequest(), self._router.take))
            self._note_cluster()
        except KvmetaError:  # an old map does; nodes know better
            if self._router.route is None:
                raise

    def _ways(self, ids: Ids, rows: int) -> list[tuple[tuple[str, ...], Part]]:
        """Return whom to ask and for which rows of `ids`: up to `rows` a message, about so many of a share.

        Shares are uneven by chance; a message of a few rows beside a full one would cost as much as that.
        """
        out: list[tuple[tuple[str, ...], Part]] = []
        for to, mine in self._router.split(ids):
            if mine is None:
                # One message, an empty one, where there are no IDs: the server still checks the rest.
                starts = range(0, max(len(ids), 1), rows)
                out += [(to, slice(start, min(start + rows, len(ids)))) for start in starts]
            else:
                count = max(1, round(len(mine) / rows), -(-len(mine) // self.rows_max))
                out += [(to, share) for share in np.array_split(mine, count)]
        return out

    def _write_call(
        self,
        operation: pb.Operation,
        ids: Ids,
        locations: Locations | None,
        versions: Versions | None,
        take: Callable[[bytes], None],
        to: tuple[str, ...],
    ) -> Call:
        head = pb.WriteRequest(
            dataset=self.name, meant=self._meant[1], operation=operation, reply_compression=self._packing
        )
        message = ColumnMessage.of(head, self._packing, ids=ids, locations=locations, versions=versions)
        return call_of("Write", message, take, to)

    def _checked_parts(
        self, batches: Iterable[tuple[Any, Any]]
    ) -> Iterator[tuple[tuple[str, ...], Ids, Locations]]:
        for ids, locations in batches:
            column = as_ids(ids)
            rows = as_locations(locations, len(column))
            for to, part in self._ways(column, self.rows_max):
                yield to, column[part], rows[part]


@dataclass(frozen=True)
class _Written:
    """What became of a write's rows: the columns of WriteResponse; `winners`: see `Distinct`."""

    outcomes: NDArray[np.uint8]
    locations: Locations
    versions: Versions
    winners: NDArray[np.bool_]
    unacknowledged: NDArray[np.bool_]
    error: KvmetaError | None = None

    @staticmethod
    def empty(n: int, has_columns: bool) -> _Written:
        rows = n if has_columns else 0
        return _Written(
            np.zeros(rows, np.uint8),
            np.zeros(rows, LOCATION),
            np.zeros(rows, np.uint64),
            np.ones(n, np.bool_),
            np.zeros(n, np.bool_),
        )

    def take(self, operation: pb.Operation, part: Part, reply: Any) -> None:
        n = len(self.unacknowledged[part])
        if operation in (pb.OPERATION_PUT, pb.OPERATION_DELETE):
            if reply.outcomes.form is not None:
                told = unpack(reply.outcomes, CODE, n, "outcomes")
                self.unacknowledged[part] = told != Outcome.TOOK_EFFECT
            return
        fill(reply.outcomes, self.outcomes, part, "outcomes")
        self.unacknowledged[part] = self.outcomes[part] == Outcome.UNACKNOWLEDGED
        if operation == pb.OPERATION_INSERT:
            fill(reply.locations, self.locations, part, "locations")
            fill(reply.versions, self.versions, part, "versions")

    def spread(self, place: NDArray[np.int64] | None, winners: NDArray[np.bool_]) -> _Written:
        """Return the columns over the call's rows."""
        if place is None:
            return self
        missing = self.unacknowledged[place]
        if not len(self.outcomes):
            return replace(self, unacknowledged=missing)
        columns = self.outcomes[place], self.locations[place], self.versions[place]
        return _Written(*columns, winners, missing, self.error)

    def check(self, dataset: str, partial: Any) -> None:
        """Raise where not every row is acknowledged; the error has `.failed` and the others' result."""
        if self.error is None and not self.unacknowledged.any():
            return
        error = self.error or _unacknowledged(dataset, int(self.unacknowledged.sum()))
        error.failed = self.unacknowledged
        if isinstance(error, OutcomeUnknownError):
            error.partial = partial
        raise error


def _unacknowledged(dataset: str, count: int) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"dataset {dataset!r}: too few replicas acknowledged {count} IDs; they may or may not take effect"
    )
