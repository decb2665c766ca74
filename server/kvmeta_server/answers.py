"""What a server answers: one coroutine a call, request in, response out. No gRPC, no threads.

Over a store in a directory they never wait, over a cluster they do (backend.py). Whatever is wrong is raised
as a KvmetaError; columns are views of the request's bytes until the engine copies them.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Inserted, Relocated
from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import (
    CorruptionError,
    IncompleteBatchError,
    InputError,
    OutcomeUnknownError,
    UnavailableError,
)
from kvmeta.ids import ID, ids_from_keys
from kvmeta.location import LOCATION, Location, as_locations
from kvmeta.protocol import records
from kvmeta.protocol.codes import Outcome, State
from kvmeta.protocol.columns import PLAIN, VERSION, Column, unpack, unpack_up_to
from kvmeta.protocol.messages import ColumnMessage, MessageBytes
from kvmeta.store import Scan
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import NewVolume, Volume, check_codec, normal_uri
from kvmeta_server.backend import Backend, Named
from kvmeta_server.config import Limits

TEXT_BYTES_MAX = 4096
"""Bytes of a URI or of a name: one volume always fits a response."""
VOLUMES_ADDED_MAX = 1_000
"""Volumes registered by one call: they are one change."""
VOLUMES_BYTES_MAX = 2 << 20
"""Bytes of volumes in one response: half of what a gRPC client takes by default."""

_ID_BYTES = 16

T = TypeVar("T")


class Answers:
    """The answers of one backend; `version` is that of this package."""

    def __init__(self, backend: Backend, limits: Limits, version: str = "") -> None:
        self._backend = backend
        self._limits = limits
        self._version = version

    async def describe(self, _: pb.DescribeRequest) -> pb.DescribeResponse:
        """Say what the server is and accepts."""
        engine = self._backend.local.engine
        return pb.DescribeResponse(
            version=self._version,
            store_id=engine.identity.store_id,
            seed=engine.identity.seed,
            batch_rows_max=self._limits.batch_rows_max,
            message_bytes_max=self._limits.message_bytes_max,
            read_only=engine.read_only,
            epoch=self._backend.epoch,
        )

    async def lookup(self, request: Any) -> ColumnMessage:
        """Look up a batch; damage is a state, not an error."""
        fast = request.consistency == pb.CONSISTENCY_FAST
        hits, states = await self._backend.lookup(self._named(request), self._ids(request.ids), fast=fast)
        head, packing = pb.LookupResponse(epoch=self._backend.epoch), request.reply_compression
        return ColumnMessage.of(
            head, packing, states=states, locations=hits.locations, versions=hits.versions
        )

    async def write(self, request: Any) -> pb.WriteResponse | ColumnMessage:
        """Write a batch, which is atomic: it is one chunk of the engine."""
        dataset, ids = self._named(request), self._ids(request.ids)
        operation, packing = request.operation, request.reply_compression
        if operation == pb.OPERATION_DELETE:
            return await self._all_or_some(self._backend.delete(dataset, ids))
        if operation not in (pb.OPERATION_PUT, pb.OPERATION_INSERT, pb.OPERATION_RELOCATE):
            raise InputError(f"operation: expected PUT, INSERT, DELETE or RELOCATE, got {operation}")
        locations = unpack(request.locations, LOCATION, len(ids), "locations")
        if operation == pb.OPERATION_PUT:
            return await self._all_or_some(self._backend.put(dataset, ids, locations))
        if operation == pb.OPERATION_INSERT:
            columns = await _inserted(self._backend.insert(dataset, ids, locations))
        else:
            versions = unpack(request.versions, VERSION, len(ids), "versions")
            columns = await _relocated(self._backend.relocate(dataset, ids, locations, versions))
        return ColumnMessage.of(pb.WriteResponse(epoch=self._backend.epoch), packing, **columns)

    async def scan(self, request: pb.ScanRequest) -> ColumnMessage:
        """Return the next page of a scan."""
        rows_max = self._limits.batch_rows_max
        scan = Scan(
            page_rows=min(request.page_rows or rows_max, rows_max),
            sample=request.sample if request.HasField("sample") else 1.0,
            tag=request.tag if request.HasField("tag") else None,
            after=request.after or None,
            shard=(request.shard_index, request.shard_count or 1),
        )
        page, done = await self._backend.scan_page(self._named(request), scan)
        packing = request.reply_compression
        head = pb.ScanResponse(cursor=page.cursor, done=done)
        return ColumnMessage.of(head, packing, ids=page.ids, locations=page.locations, versions=page.versions)

    async def get(self, request: pb.GetRequest) -> pb.GetResponse:
        """Return one entry."""
        fast = request.consistency == pb.CONSISTENCY_FAST
        hits, states = await self._backend.lookup(self._named(request), _entry_id(request.entry), fast=fast)
        state = int(states[0])
        if state == State.UNAVAILABLE:
            raise UnavailableError("too few replicas of the entry answered; try again")
        if state == State.FAILED:
            raise CorruptionError("the page that may hold the entry is damaged; run verify to see which")
        if not hits.found[0]:
            return pb.GetResponse()
        volume, length, offset, checksum, tag = hits.locations[0].tolist()
        location = pb.Location(volume=volume, length=length, offset=offset, checksum=checksum, tag=tag)
        return pb.GetResponse(location=location, version=int(hits.versions[0]))

    async def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """Set one entry."""
        if not request.HasField("location"):
            raise InputError("location: missing")
        given = request.location
        row = Location(given.volume, given.length, given.offset, given.checksum, given.tag)
        await self._backend.put(self._named(request), _entry_id(request.entry), as_locations(row, 1))
        return pb.PutResponse()

    async def delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        """Remove one entry."""
        await self._backend.delete(self._named(request), _entry_id(request.entry))
        return pb.DeleteResponse()

    async def create_dataset(self, request: pb.CreateDatasetRequest) -> pb.CreateDatasetResponse:
        """Create a dataset."""
        ttl_s = request.ttl_s if request.HasField("ttl_s") else None
        await self._backend.store.create_dataset(
            request.name, ttl_s=ttl_s, bottom_filter=request.bottom_filter
        )
        numbers = await self._backend.store.dataset_numbers()
        return pb.CreateDatasetResponse(number=numbers.get(request.name, 0))

    async def drop_dataset(self, request: pb.DropDatasetRequest) -> pb.DropDatasetResponse:
        """Remove a dataset."""
        await self._backend.store.drop_dataset(request.name)
        return pb.DropDatasetResponse()

    async def list_datasets(self, _: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        """Return the datasets' names."""
        numbers = await self._backend.store.dataset_numbers()
        names = sorted(numbers)
        return pb.ListDatasetsResponse(names=names, numbers=[numbers[name] for name in names])

    async def add_volume(self, request: pb.AddVolumeRequest) -> pb.AddVolumeResponse:
        """Register a volume."""
        (volume,) = await self._backend.volumes.register([_new_volume(request)])
        return pb.AddVolumeResponse(volume=records.volume_message(volume))

    async def add_volumes(self, request: pb.AddVolumesRequest) -> pb.AddVolumesResponse:
        """Register volumes."""
        if len(request.volumes) > VOLUMES_ADDED_MAX:
            raise InputError(f"volumes: at most {VOLUMES_ADDED_MAX} at once, got {len(request.volumes)}")
        volumes = await self._backend.volumes.register([_new_volume(each) for each in request.volumes])
        return pb.AddVolumesResponse(volumes=[records.volume_message(volume) for volume in volumes])

    async def get_volumes(self, request: pb.GetVolumesRequest) -> pb.GetVolumesResponse:
        """Return the first of some volumes, as many as fit."""
        found = _Fitting()
        for name in request.volumes:
            if not found.take(await self._volume(name)):
                break
        return pb.GetVolumesResponse(volumes=found.messages)

    async def list_volumes(self, request: pb.ListVolumesRequest) -> MessageBytes:
        """Return the next volumes by number."""
        volumes, done = await self._backend.volumes.messages(request.after, VOLUMES_BYTES_MAX)
        return MessageBytes(volumes + pb.ListVolumesResponse(done=done).SerializeToString())

    async def update_volume(self, request: pb.UpdateVolumeRequest) -> pb.UpdateVolumeResponse:
        """Change a volume."""
        volume = await self._volume(request.volume)
        state = None if request.state == pb.VOLUME_STATE_UNSPECIFIED else records.state_name(request.state)
        if request.HasField("uri"):
            volume = await self._backend.volumes.move(volume, _absolute_uri(request.uri))
        if state is not None:
            volume = await self._backend.volumes.set_state(volume, state)
        return pb.UpdateVolumeResponse(volume=records.volume_message(volume))

    async def get_map(self, _: pb.GetMapRequest) -> ColumnMessage:
        """Return the cluster's map."""
        return self._backend.get_map()

    async def flush(self, _: pb.FlushRequest) -> pb.FlushResponse:
        """Write what is in memory to runs."""
        await self._backend.store.flush()
        return pb.FlushResponse()

    async def stats(self, _: pb.StatsRequest) -> pb.StatsResponse:
        """Return figures about the store."""
        return records.stats_message(await self._backend.store.stats())

    async def _all_or_some(self, write: Awaitable[None]) -> pb.WriteResponse | ColumnMessage:
        """Return what became of a write; in a cluster some IDs may be acknowledged and others not."""
        head = pb.WriteResponse(epoch=self._backend.epoch)
        try:
            await write
        except OutcomeUnknownError as error:
            if error.failed is None or error.failed.all():
                raise
            outcomes = np.where(error.failed, np.uint8(Outcome.UNACKNOWLEDGED), np.uint8(Outcome.TOOK_EFFECT))
            return ColumnMessage.of(head, PLAIN, outcomes=outcomes)
        return head

    def _ids(self, packed: Column) -> NDArray[np.void]:
        return unpack_up_to(packed, ID, self._limits.batch_rows_max, "ids")

    def _named(self, request: Any) -> Named:
        """Return the dataset that a request is about; raise where it means another cluster than this."""
        meant = request.meant
        if meant.cluster:
            self._backend.check_cluster(meant.cluster)
        return Named(request.dataset or DEFAULT_DATASET, meant.dataset)

    async def _volume(self, name: pb.VolumeName) -> Volume:
        which = name.WhichOneof("name")
        if which is None:
            raise InputError("volume: expected a number or a URI")
        volume: Volume = await self._backend.volumes.get(
            name.number if which == "number" else _absolute_uri(name.uri)
        )
        return volume


async def _inserted(insert: Awaitable[Inserted]) -> dict[str, NDArray[Any]]:
    """Return the columns that tell of an insert."""
    result, unknown = await _decided(insert)
    outcomes = np.where(result.inserted, np.uint8(Outcome.TOOK_EFFECT), np.uint8(Outcome.EXISTS))
    outcomes[result.failed] = Outcome.FAILED
    if unknown is not None:
        outcomes[unknown] = Outcome.UNACKNOWLEDGED
    return {"outcomes": outcomes, "locations": result.locations, "versions": result.versions}


async def _relocated(relocate: Awaitable[Relocated]) -> dict[str, NDArray[Any]]:
    """Return the column that tells of a relocate."""
    result, unknown = await _decided(relocate)
    outcomes = result.outcomes
    if unknown is not None:
        outcomes[unknown] = Outcome.UNACKNOWLEDGED
    return {"outcomes": outcomes}


async def _decided(write: Awaitable[T]) -> tuple[T, NDArray[np.bool_] | None]:
    """Return the result of what could be decided, and which IDs are not acknowledged; raise where none is."""
    try:
        return await write, None
    except IncompleteBatchError as error:
        return error.partial, None
    except OutcomeUnknownError as error:
        if error.partial is None or error.failed is None or error.failed.all():
            raise
        return error.partial, error.failed


class _Fitting:
    """The first volumes, as many as fit a response: at least one."""

    def __init__(self) -> None:
        self.messages: list[pb.Volume] = []
        self._bytes = 0

    def take(self, volume: Volume) -> bool:
        """Take a volume; return False where it does not fit any more."""
        message = records.volume_message(volume)
        self._bytes += message.ByteSize()
        if self.messages and self._bytes > VOLUMES_BYTES_MAX:
            return False
        self.messages.append(message)
        return True


def _entry_id(entry: pb.EntryName) -> NDArray[np.void]:
    which = entry.WhichOneof("name")
    if which is None:
        raise InputError("entry: expected an id or a key")
    if which == "key":
        return ids_from_keys([entry.key])
    if len(entry.id) != _ID_BYTES:
        raise InputError(f"entry: an id has exactly {_ID_BYTES} bytes, got {len(entry.id)}")
    return np.frombuffer(entry.id, ID)


def _new_volume(request: pb.AddVolumeRequest) -> NewVolume:
    return NewVolume(
        normal_uri(_absolute_uri(request.uri)),
        _bounded("name", request.name) if request.HasField("name") else None,
        request.size_bytes if request.HasField("size_bytes") else None,
        check_codec(records.codec_name(request.codec)),
    )


def _bounded(name: str, text: str) -> str:
    """Return `text`; InputError where it has more than TEXT_BYTES_MAX bytes."""
    size = len(text.encode())
    if size > TEXT_BYTES_MAX:
        raise InputError(f"{name}: {size} bytes; at most {TEXT_BYTES_MAX} are taken")
    return text


def _absolute_uri(uri: str) -> str:
    """Return `uri`; a path would be one of the server's working directory, which no client can mean."""
    _bounded("uri", uri)
    if "://" not in uri:
        raise InputError(f"uri: expected an absolute URI such as file:///data/shard.tar, got {uri!r}")
    return uri
