"""What a server answers: one function a call, request in, response out. No gRPC, no threads.

Whatever is wrong is raised as a KvmetaError; columns are views of the request's bytes until the engine copies
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvmeta
from kvmeta.batch import Hits, Outcome
from kvmeta.embedded import EmbeddedDataset, EmbeddedStore
from kvmeta.errors import (
    CorruptionError,
    IncompleteBatchError,
    InputError,
    OutcomeUnknownError,
    UnavailableError,
    UnsupportedError,
)
from kvmeta.ids import ID, ids_from_keys
from kvmeta.location import LOCATION
from kvmeta.protocol import records
from kvmeta.protocol.codes import EXISTS, FAILED, TOOK_EFFECT, UNACKNOWLEDGED, UNAVAILABLE
from kvmeta.protocol.frame import Frame
from kvmeta.protocol.packed import VERSION, unpack, unpack_up_to
from kvmeta.store import Scan
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import Volume
from kvmeta_server.cluster.store import CoordinatedDataset, CoordinatedStore
from kvmeta_server.config import Limits

TEXT_BYTES_MAX = 4096
"""Bytes of a URI or of a name: one volume always fits a response."""
VOLUMES_BYTES_MAX = 2 << 20
"""Bytes of volumes in one response: half of what a gRPC client takes by default."""

_ID_BYTES = 16
AnyDataset = EmbeddedDataset | CoordinatedDataset


class Answers:
    """The answers of one store."""

    def __init__(self, store: EmbeddedStore | CoordinatedStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def describe(self, _: pb.DescribeRequest) -> pb.DescribeResponse:
        """Say what the server is and accepts."""
        identity = self._store.engine.identity
        return pb.DescribeResponse(
            version=kvmeta.__version__,
            store_id=identity.store_id,
            seed=identity.seed,
            batch_rows_max=self._limits.batch_rows_max,
            message_bytes_max=self._limits.message_bytes_max,
            read_only=self._store.engine.read_only,
            epoch=self._epoch(),
        )

    def lookup(self, request: pb.LookupRequest) -> Frame:
        """Look up a batch; damage is a state, not an error."""
        fast = request.consistency == pb.CONSISTENCY_FAST
        hits, states = _looked_up(self._dataset(request.dataset), self._ids(request.ids), fast=fast)
        head, packing = pb.LookupResponse(epoch=self._epoch()), request.reply_compression
        return Frame.of(head, packing, states=states, locations=hits.locations, versions=hits.versions)

    def write(self, request: pb.WriteRequest) -> pb.WriteResponse | Frame:
        """Write a batch, which is atomic: it is one chunk of the engine."""
        dataset = self._dataset(request.dataset)
        ids = self._ids(request.ids)
        operation, packing = request.operation, request.reply_compression
        if operation == pb.OPERATION_DELETE:
            return self._all_or_some(lambda: dataset.delete(ids))
        if operation not in (pb.OPERATION_PUT, pb.OPERATION_INSERT, pb.OPERATION_RELOCATE):
            raise InputError(f"operation: expected PUT, INSERT, DELETE or RELOCATE, got {operation}")
        locations = unpack(request.locations, LOCATION, len(ids), "locations")
        if operation == pb.OPERATION_PUT:
            return self._all_or_some(lambda: dataset.put(ids, locations))
        if operation == pb.OPERATION_INSERT:
            return _insert(pb.WriteResponse(epoch=self._epoch()), dataset, ids, locations, packing)
        versions = unpack(request.versions, VERSION, len(ids), "versions")
        return _relocate(pb.WriteResponse(epoch=self._epoch()), dataset, ids, locations, versions, packing)

    def scan(self, request: pb.ScanRequest) -> Frame:
        """Return the next page of a scan."""
        rows_max = self._limits.batch_rows_max
        scan = Scan(
            page_rows=min(request.page_rows or rows_max, rows_max),
            sample=request.sample if request.HasField("sample") else 1.0,
            tag=request.tag if request.HasField("tag") else None,
            after=request.after or None,
            shard=(request.shard_index, request.shard_count or 1),
        )
        page, done = self._dataset(request.dataset).scan_page(scan)
        packing = request.reply_compression
        head = pb.ScanResponse(cursor=page.cursor, done=done)
        return Frame.of(head, packing, ids=page.ids, locations=page.locations, versions=page.versions)

    def get(self, request: pb.GetRequest) -> pb.GetResponse:
        """Return one entry."""
        fast = request.consistency == pb.CONSISTENCY_FAST
        hits, states = _looked_up(self._dataset(request.dataset), _entry_id(request.entry), fast=fast)
        if states[0] == UNAVAILABLE:
            raise UnavailableError("too few replicas of the entry answered; try again")
        if states[0] == FAILED:
            raise CorruptionError("the page that may hold the entry is damaged; run verify to see which")
        if not hits.found[0]:
            return pb.GetResponse()
        volume, length, offset, checksum, tag = hits.locations[0].tolist()
        location = pb.Location(volume=volume, length=length, offset=offset, checksum=checksum, tag=tag)
        return pb.GetResponse(location=location, version=int(hits.versions[0]))

    def put(self, request: pb.PutRequest) -> pb.PutResponse:
        """Set one entry."""
        if not request.HasField("location"):
            raise InputError("location: missing")
        given = request.location
        row = kvmeta.Location(given.volume, given.length, given.offset, given.checksum, given.tag)
        self._dataset(request.dataset).put(_entry_id(request.entry), row)
        return pb.PutResponse()

    def delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        """Remove one entry."""
        self._dataset(request.dataset).delete(_entry_id(request.entry))
        return pb.DeleteResponse()

    def create_dataset(self, request: pb.CreateDatasetRequest) -> pb.CreateDatasetResponse:
        """Create a dataset."""
        ttl_s = request.ttl_s if request.HasField("ttl_s") else None
        self._store.create_dataset(request.name, ttl_s=ttl_s, bottom_filter=request.bottom_filter)
        return pb.CreateDatasetResponse()

    def drop_dataset(self, request: pb.DropDatasetRequest) -> pb.DropDatasetResponse:
        """Remove a dataset."""
        self._store.drop_dataset(request.name)
        return pb.DropDatasetResponse()

    def list_datasets(self, _: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        """Return the datasets' names."""
        return pb.ListDatasetsResponse(names=self._store.datasets())

    def add_volume(self, request: pb.AddVolumeRequest) -> pb.AddVolumeResponse:
        """Register a volume."""
        volume = self._store.volumes.add(
            _absolute_uri(request.uri),
            name=_bounded("name", request.name) if request.HasField("name") else None,
            size_bytes=request.size_bytes if request.HasField("size_bytes") else None,
        )
        return pb.AddVolumeResponse(volume=records.volume_message(volume))

    def get_volumes(self, request: pb.GetVolumesRequest) -> pb.GetVolumesResponse:
        """Return the first of some volumes, as many as fit."""
        found, _ = _fitting(self._volume(name) for name in request.volumes)
        return pb.GetVolumesResponse(volumes=found)

    def list_volumes(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        """Return the next volumes by number."""
        after = (volume for volume in self._store.volumes.list() if int(volume) > request.after)
        found, done = _fitting(after)
        return pb.ListVolumesResponse(volumes=found, done=done)

    def update_volume(self, request: pb.UpdateVolumeRequest) -> pb.UpdateVolumeResponse:
        """Change a volume."""
        volume = self._volume(request.volume)
        state = None if request.state == pb.VOLUME_STATE_UNSPECIFIED else records.state_name(request.state)
        if request.HasField("uri"):
            volume = self._store.volumes.move(volume, _absolute_uri(request.uri))
        if state is not None:
            volume = self._store.volumes.set_state(volume, state)
        return pb.UpdateVolumeResponse(volume=records.volume_message(volume))

    def get_map(self, _: pb.GetMapRequest) -> Frame:
        """Return the cluster's map."""
        if isinstance(self._store, EmbeddedStore):
            raise UnsupportedError("this is a single server; there is no map")
        cluster_map, peers = self._store.maps.current, self._store.peers
        nodes = [
            pb.Node(slot=node.slot, name=node.name, address=node.address, live=peers.likely(node.slot))
            for node in cluster_map.nodes
        ]
        head = pb.GetMapResponse(
            epoch=cluster_map.epoch, partitions=cluster_map.partitions, replicas=cluster_map.replicas,
            write_quorum=cluster_map.write_quorum, nodes=nodes,
        )  # fmt: skip
        return Frame.of(head, pb.COMPRESSION_UNSPECIFIED, owners=np.ascontiguousarray(cluster_map.readers))

    def flush(self, _: pb.FlushRequest) -> pb.FlushResponse:
        """Write what is in memory to runs."""
        self._store.flush()
        return pb.FlushResponse()

    def stats(self, _: pb.StatsRequest) -> pb.StatsResponse:
        """Return figures about the store."""
        return records.stats_message(self._store.stats())

    def _epoch(self) -> int:
        return 0 if isinstance(self._store, EmbeddedStore) else self._store.maps.current.epoch

    def _all_or_some(self, write: Callable[[], None]) -> pb.WriteResponse | Frame:
        """Return what became of a write; in a cluster some IDs may be acknowledged and others not."""
        head = pb.WriteResponse(epoch=self._epoch())
        try:
            write()
        except OutcomeUnknownError as error:
            if error.failed is None or error.failed.all():
                raise
            outcomes = np.where(error.failed, np.uint8(UNACKNOWLEDGED), np.uint8(TOOK_EFFECT))
            return Frame.of(head, pb.COMPRESSION_UNSPECIFIED, outcomes=outcomes)
        return head

    def _dataset(self, name: str) -> AnyDataset:
        return self._store.dataset(name or "default")

    def _ids(self, packed: pb.Packed) -> NDArray[np.void]:
        return unpack_up_to(packed, ID, self._limits.batch_rows_max, "ids")

    def _volume(self, name: pb.VolumeName) -> Volume:
        which = name.WhichOneof("name")
        if which is None:
            raise InputError("volume: expected a number or a URI")
        return self._store.volumes.get(name.number if which == "number" else _absolute_uri(name.uri))


def _looked_up(dataset: AnyDataset, ids: NDArray[np.void], *, fast: bool) -> tuple[Hits, NDArray[np.uint8]]:
    """Look up a batch; return the hits and the protocol's states."""
    if isinstance(dataset, CoordinatedDataset):
        return dataset.lookup_at(ids, fast=fast)
    hits = dataset.lookup(ids, on_error="mask")
    states = hits.found.view(np.uint8)
    return hits, np.where(hits.failed, np.uint8(FAILED), states) if hits.failed.any() else states


def _insert(
    head: pb.WriteResponse,
    dataset: AnyDataset,
    ids: NDArray[np.void],
    locations: NDArray[np.void],
    packing: pb.Compression,
) -> Frame:
    unknown = None
    try:
        result = dataset.insert(ids, locations)
    except (IncompleteBatchError, OutcomeUnknownError) as error:
        result, unknown = _partial(error)
    outcomes = np.where(result.inserted, np.uint8(TOOK_EFFECT), np.uint8(EXISTS))
    outcomes[result.failed] = Outcome.FAILED
    if unknown is not None:
        outcomes[unknown] = UNACKNOWLEDGED
    columns = {"locations": result.locations, "versions": result.versions}
    return Frame.of(head, packing, outcomes=outcomes, **columns)


def _relocate(
    head: pb.WriteResponse,
    dataset: AnyDataset,
    ids: NDArray[np.void],
    locations: NDArray[np.void],
    versions: NDArray[Any],
    packing: pb.Compression,
) -> Frame:
    unknown = None
    try:
        result = dataset.relocate(ids, locations, versions)
    except (IncompleteBatchError, OutcomeUnknownError) as error:
        result, unknown = _partial(error)
    outcomes = result.outcomes
    if unknown is not None:
        outcomes[unknown] = UNACKNOWLEDGED
    return Frame.of(head, packing, outcomes=outcomes)


def _partial(error: IncompleteBatchError | OutcomeUnknownError) -> tuple[Any, NDArray[np.bool_] | None]:
    """Return the result of what could be decided, and which IDs are not acknowledged; else raise `error`."""
    if isinstance(error, IncompleteBatchError):
        return error.partial, None
    if error.partial is None or error.failed is None or error.failed.all():
        raise error
    return error.partial, error.failed


def _fitting(volumes: Iterable[Volume]) -> tuple[list[pb.Volume], bool]:
    """Return the first volumes, as many as fit a response (at least one), and whether that is all."""
    found: list[pb.Volume] = []
    size = 0
    for volume in volumes:
        message = records.volume_message(volume)
        size += message.ByteSize()
        if found and size > VOLUMES_BYTES_MAX:
            return found, False
        found.append(message)
    return found, True


def _entry_id(entry: pb.EntryName) -> NDArray[np.void]:
    which = entry.WhichOneof("name")
    if which is None:
        raise InputError("entry: expected an id or a key")
    if which == "key":
        return ids_from_keys([entry.key])
    if len(entry.id) != _ID_BYTES:
        raise InputError(f"entry: an id has exactly {_ID_BYTES} bytes, got {len(entry.id)}")
    return np.frombuffer(entry.id, ID)


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
