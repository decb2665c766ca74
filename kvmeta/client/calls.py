"""What is asked of a server, without saying how it is sent: one description, two SDKs.

A *program* is a generator. It yields calls that may be under way at once; whoever runs it sends them, gives
each reply to its call's `take`, and sends back one entry a call sent: None, or the error that ended it. After
an error no further call of those yielded is sent. What the program returns is the operation's result.

    remote.py, aio.py                          calls.py
    run(program) ── next ────────────────────> yields Calls (encoded as they are taken)
         │  send, a few in flight, try again
         └─ errors ── send ──────────────────> raises, or returns columns
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Outcome, Relocated, ScanPage
from kvmeta.client.attempts import Call
from kvmeta.client.distinct import Distinct, share_an_id, sorted_sums
from kvmeta.client.options import ClientOptions
from kvmeta.client.routing import Router
from kvmeta.errors import (
    InputError,
    KvmetaError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)
from kvmeta.ids import ID, as_ids
from kvmeta.location import LOCATION, Location, as_locations
from kvmeta.protocol import records, status
from kvmeta.protocol.calls import ALL_METHODS
from kvmeta.protocol.codes import EXISTS, FAILED, FOUND, TOOK_EFFECT, UNACKNOWLEDGED
from kvmeta.protocol.frame import Frame, parse
from kvmeta.protocol.packed import STATE, fill, unpack, unpack_into, unpack_up_to
from kvmeta.store import (
    CURSOR_BYTES,
    Progress,
    Scan,
    StoreStats,
    VerifyReport,
    check_dataset_name,
    check_ttl,
    unregistered,
)
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import STATES, VOLUME_MAX, Volume, normal_uri

T = TypeVar("T")
Errors = Sequence[KvmetaError | None]
Program = Generator[Iterable[Call], Errors, T]
Ids = NDArray[np.void]
Locations = NDArray[np.void]
Versions = NDArray[np.uint64]
Part = slice | NDArray[np.int64]
"""Which rows of a call a message is about: a stretch of them, or their numbers."""

_VOLUMES_MAX = 10_000  # named in one GetVolumes: less than a megabyte


def describe() -> Program[pb.DescribeResponse]:
    """Ask what the server is and accepts."""
    reply: pb.DescribeResponse = yield from ask("Describe", pb.DescribeRequest())
    if not reply.batch_rows_max:
        raise UnavailableError("the server takes batches of no rows: is it a kvmeta server?")
    return reply


class DatasetCalls:
    """What a dataset asks, all columns checked before; `rows_max` is the server's limit for a message."""

    def __init__(
        self, name: str, options: ClientOptions, rows_max: int, router: Router | None = None
    ) -> None:
        self.name = name
        self.options = options
        self.rows_max = rows_max
        self._router = router or Router(())
        fast = options.consistency == "fast"
        consistency = pb.CONSISTENCY_FAST if fast else pb.CONSISTENCY_UNSPECIFIED
        self._lookup_head = pb.LookupRequest(
            dataset=name, reply_compression=options.packing, consistency=consistency
        )

    def lookup(self, ids: Ids) -> Program[Hits]:
        """Look up ID[n]; damage is told in `failed`."""
        n = len(ids)
        # Every row is written by a reply, or an error is raised.
        states, versions = np.empty(n, np.uint8), np.empty(n, np.uint64)
        locations = np.empty(n, LOCATION)
        yield from self._find_ways()

        def take(part: Part, raw: bytes) -> None:
            reply = parse(pb.LookupResponse, raw)
            self._router.saw(reply.epoch)
            fill(reply.states, states, part, "states")
            fill(reply.locations, locations, part, "locations")
            fill(reply.versions, versions, part, "versions")

        def calls() -> Iterator[Call]:
            for to, part in self._ways(ids, min(self.options.lookup_rows, self.rows_max)):
                request = self._message(self._lookup_head, ids=ids[part])
                yield Call("Lookup", request, partial(take, part), to=to)

        _raise_first((yield calls()))
        return Hits(states == FOUND, locations, versions, states >= FAILED)

    def get(self, one_id: Ids) -> Program[Location | None]:
        """Return the location of ID[1]: a call with ordinary fields, which costs less than a batch of one."""
        yield from self._find_ways()
        request = pb.GetRequest(
            dataset=self.name,
            entry=pb.EntryName(id=one_id.tobytes()),
            consistency=self._lookup_head.consistency,
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
        inserted = (written.outcomes == TOOK_EFFECT) & written.winners
        failed = (written.outcomes != TOOK_EFFECT) & (written.outcomes != EXISTS)
        result = Inserted(inserted, written.locations, written.versions, failed)
        written.check(self.name, result)
        return result

    def relocate(self, ids: Ids, locations: Locations, versions: Versions) -> Program[Relocated]:
        """Relocate ID[n]; damage is told in `outcomes`."""
        written = yield from self._write(pb.OPERATION_RELOCATE, ids, locations, versions)
        outcomes = written.outcomes.copy()
        outcomes[outcomes > Outcome.FAILED] = Outcome.FAILED  # not acknowledged, or of a newer server
        outcomes[~written.winners] = Outcome.REPEATED
        result = Relocated(outcomes == Outcome.RELOCATED, outcomes)
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
            told = unpack_up_to(reply.outcomes, STATE, self.rows_max, "outcomes")
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
            _raise_first((yield calls()))
            if any(missing):
                raise _unacknowledged(self.name, sum(missing))
        return rows

    def scan_page(self, scan: Scan) -> Program[tuple[ScanPage, bool]]:
        """Return the next page, which may be empty, and whether it is the last."""
        rows_max = min(scan.page_rows, self.rows_max)
        request = pb.ScanRequest(
            dataset=self.name,
            page_rows=rows_max,
            sample=float(scan.sample),
            tag=scan.tag,
            after=scan.after or b"",
            shard_index=int(scan.shard[0]),
            shard_count=int(scan.shard[1]),
            reply_compression=self.options.packing,
        )
        pages: list[tuple[ScanPage, bool]] = []

        def take(raw: bytes) -> None:
            reply = parse(pb.ScanResponse, raw)
            ids = unpack_up_to(reply.ids, ID, rows_max, "ids").copy()
            locations, versions = np.empty(len(ids), LOCATION), np.empty(len(ids), np.uint64)
            unpack_into(reply.locations, locations, "locations")
            unpack_into(reply.versions, versions, "versions")
            moves = len(reply.cursor) == CURSOR_BYTES and reply.cursor > (scan.after or b"")
            if not moves and not reply.done:
                raise InputError(f"cursor: {reply.cursor!r} does not continue {scan.after!r}")
            pages.append((ScanPage(ids, locations, versions, reply.cursor), reply.done))

        _raise_first((yield [Call("Scan", request.SerializeToString(), take)]))
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
        ways = list(self._ways(ids, self.rows_max))

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
            yield from send(Call("GetMap", pb.GetMapRequest().SerializeToString(), self._router.take))
        except KvmetaError:  # an old map does; nodes know better
            if self._router.route is None:
                raise

    def _ways(self, ids: Ids, rows: int) -> Iterator[tuple[tuple[str, ...], Part]]:
        """Yield whom to ask and for which rows of `ids`: up to `rows` a message, about so many of a share.

        Shares are uneven by chance; a message of a few rows beside a full one would cost as much as that.
        """
        for to, mine in self._router.split(ids):
            if mine is None:
                for part in _parts(len(ids), rows):
                    yield to, part
            else:
                count = max(1, round(len(mine) / rows), -(-len(mine) // self.rows_max))
                for share in np.array_split(mine, count):
                    yield to, share

    def _write_call(
        self,
        operation: pb.Operation,
        ids: Ids,
        locations: Locations | None,
        versions: Versions | None,
        take: Callable[[bytes], None],
        to: tuple[str, ...],
    ) -> Call:
        head = pb.WriteRequest(dataset=self.name, operation=operation, reply_compression=self.options.packing)
        request = self._message(head, ids=ids, locations=locations, versions=versions)
        repeatable = operation in (pb.OPERATION_PUT, pb.OPERATION_DELETE)
        return Call("Write", request, take, repeatable, writes=True, to=to)

    def _checked_parts(
        self, batches: Iterable[tuple[Any, Any]]
    ) -> Iterator[tuple[tuple[str, ...], Ids, Locations]]:
        for ids, locations in batches:
            column = as_ids(ids)
            rows = as_locations(locations, len(column))
            for to, part in self._ways(column, self.rows_max):
                yield to, column[part], rows[part]

    def _message(self, head: Message, **columns: NDArray[Any] | None) -> bytes:
        return Frame.of(head, self.options.packing, **columns).SerializeToString()


@dataclass(frozen=True)
class _Written:
    """What became of a write's rows: the columns of WriteResponse; `winners` as of `Distinct`."""

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
            if reply.outcomes.WhichOneof("form") is not None:
                told = unpack(reply.outcomes, STATE, n, "outcomes")
                self.unacknowledged[part] = told != TOOK_EFFECT
            return
        fill(reply.outcomes, self.outcomes, part, "outcomes")
        self.unacknowledged[part] = self.outcomes[part] == UNACKNOWLEDGED
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


@dataclass(frozen=True)
class StoreCalls:
    """What a store asks besides batches."""

    def dataset(self, name: str) -> Program[None]:
        """Raise NotFoundError where there is no dataset `name`."""
        known = yield from self.datasets()
        if name not in known:
            has = ", ".join(known)
            raise NotFoundError(f"no dataset {name!r} (there are: {has}); create_dataset makes one")

    def datasets(self) -> Program[list[str]]:
        """List the datasets."""
        reply = yield from ask("ListDatasets", pb.ListDatasetsRequest())
        return list(reply.names)

    def create_dataset(self, name: str, ttl_s: float | None, bottom_filter: bool) -> Program[None]:
        """Create a dataset."""
        request = pb.CreateDatasetRequest(
            name=check_dataset_name(name), ttl_s=check_ttl(ttl_s), bottom_filter=bool(bottom_filter)
        )
        yield from ask("CreateDataset", request, repeatable=False, writes=True)

    def drop_dataset(self, name: str) -> Program[None]:
        """Remove a dataset."""
        yield from ask("DropDataset", pb.DropDatasetRequest(name=name), repeatable=False, writes=True)

    def flush(self) -> Program[None]:
        """Write what is in memory to runs."""
        yield from ask("Flush", pb.FlushRequest())

    def stats(self) -> Program[StoreStats]:
        """Return the store's figures."""
        return records.stats((yield from ask("Stats", pb.StatsRequest())))

    def compact(
        self, discard_damaged: bool, progress: Progress | None, wait_s: float, to: tuple[str, ...] = ()
    ) -> Program[None]:
        """Merge each dataset's runs into one, at server `to`; each question may wait `wait_s` for the end."""
        yield from self._job(pb.JOB_KIND_COMPACT, discard_damaged, progress, wait_s, to)

    def verify(
        self, progress: Progress | None, wait_s: float, to: tuple[str, ...] = ()
    ) -> Program[VerifyReport]:
        """Read every page, at server `to`; each question may wait `wait_s` for the end."""
        job = yield from self._job(pb.JOB_KIND_VERIFY, False, progress, wait_s, to)
        reports, taken = [job.report], len(job.report.damages)
        while taken < job.report.damages_total:
            request = pb.GetJobRequest(id=job.id, damages_from=taken)
            page = (yield from ask("GetJob", request, to=to)).job.report
            if not page.damages:
                raise UnavailableError(
                    f"verify: the server lists {taken} of {job.report.damages_total} damages"
                )
            reports.append(page)
            taken += len(page.damages)
        return records.report(reports)

    def add_volume(self, uri: Any, name: str | None, size_bytes: int | None) -> Program[Volume]:
        """Register a URI."""
        request = pb.AddVolumeRequest(uri=normal_uri(uri), name=name, size_bytes=size_bytes)
        reply = yield from ask("AddVolume", request, writes=True)  # a known URI has its number already
        return records.volume(reply.volume)

    def volumes(self, names: Sequence[Any]) -> Program[list[Volume]]:
        """Return volumes by number or URI."""
        asked = [_volume_name(name) for name in names]
        found: list[Volume] = []
        while len(found) < len(asked):
            request = pb.GetVolumesRequest(volumes=asked[len(found) :][:_VOLUMES_MAX])
            reply = yield from ask("GetVolumes", request)
            if not reply.volumes:
                raise UnavailableError(f"the server returned none of {len(request.volumes)} volumes")
            found += [records.volume(volume) for volume in reply.volumes]
        return found

    def list_volumes(self) -> Program[list[Volume]]:
        """Return all volumes."""
        found: list[Volume] = []
        done = False
        while not done:
            after = int(found[-1]) if found else 0
            reply = yield from ask("ListVolumes", pb.ListVolumesRequest(after=after))
            page = [records.volume(volume) for volume in reply.volumes]
            if any(int(volume) <= after for volume in page):
                raise UnavailableError(f"the server lists a volume again after number {after}")
            found += page
            done = reply.done or not page
        return found

    def update_volume(self, volume: Any, uri: Any = None, state: str | None = None) -> Program[Volume]:
        """Change a volume's URI or state."""
        if state is not None and state not in STATES:
            raise InputError(f"state: expected one of {', '.join(STATES)}, got {state!r}")
        request = pb.UpdateVolumeRequest(
            volume=_volume_name(volume),
            uri=None if uri is None else normal_uri(uri),
            state=pb.VOLUME_STATE_UNSPECIFIED if state is None else records.STATE_OF[state],
        )
        reply = yield from ask(
            "UpdateVolume",
            request,
            repeatable=uri is None or not isinstance(volume, (str, Path)),
            writes=True,
        )
        return records.volume(reply.volume)

    def _job(
        self,
        kind: pb.JobKind,
        discard_damaged: bool,
        progress: Progress | None,
        wait_s: float,
        to: tuple[str, ...],
    ) -> Program[pb.Job]:
        start = pb.StartJobRequest(kind=kind, request_id=uuid.uuid4().hex, discard_damaged=discard_damaged)
        job: pb.Job = (yield from ask("StartJob", start, writes=True, to=to)).job
        while job.state == pb.JOB_STATE_RUNNING:
            if progress is not None:
                progress(job.done, job.total)
            job = (yield from ask("GetJob", pb.GetJobRequest(id=job.id, wait_s=wait_s), to=to)).job
        if job.state != pb.JOB_STATE_DONE:  # failed, or something that this version does not know
            raise status.error_of(job.error.reason, job.error.message, dict(job.error.metadata))
        if progress is not None:
            progress(job.total, job.total)
        return job


def _volume_name(volume: Any) -> pb.VolumeName:
    if isinstance(volume, (str, Path)):
        return pb.VolumeName(uri=normal_uri(volume))
    number = int(volume)
    if not 0 < number <= VOLUME_MAX:
        raise unregistered(number)
    return pb.VolumeName(number=number)


def ask(
    method: str,
    request: Any,
    *,
    repeatable: bool = True,
    writes: bool = False,
    to: tuple[str, ...] = (),
) -> Program[Any]:
    """Make one call and return its reply."""
    replies: list[Any] = []

    def take(raw: bytes) -> None:
        replies.append(parse(ALL_METHODS[method].response, raw))

    _raise_first((yield [Call(method, request.SerializeToString(), take, repeatable, writes, to)]))
    return replies[0]


def _unacknowledged(dataset: str, count: int) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"dataset {dataset!r}: too few replicas acknowledged {count} IDs; they may or may not take effect"
    )


def send(call: Call) -> Program[None]:
    """Make one call."""
    _raise_first((yield [call]))


def _raise_first(errors: Errors) -> None:
    for error in errors:
        if error is not None:
            raise error


def _parts(n: int, size: int) -> Iterator[slice]:
    """Yield slices of up to `size` rows; one, empty, where n is 0: the server still checks the rest."""
    for start in range(0, max(n, 1), size):
        yield slice(start, min(start + size, n))
