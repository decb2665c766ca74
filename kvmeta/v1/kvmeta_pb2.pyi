from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPRESSION_UNSPECIFIED: _ClassVar[Compression]
    COMPRESSION_LZ4: _ClassVar[Compression]

class Consistency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSISTENCY_UNSPECIFIED: _ClassVar[Consistency]
    CONSISTENCY_FAST: _ClassVar[Consistency]

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_PUT: _ClassVar[Operation]
    OPERATION_INSERT: _ClassVar[Operation]
    OPERATION_DELETE: _ClassVar[Operation]
    OPERATION_RELOCATE: _ClassVar[Operation]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_GZIP: _ClassVar[Codec]
    CODEC_DEFLATE: _ClassVar[Codec]
    CODEC_ZSTD: _ClassVar[Codec]

class VolumeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VOLUME_STATE_UNSPECIFIED: _ClassVar[VolumeState]
    VOLUME_STATE_ONLINE: _ClassVar[VolumeState]
    VOLUME_STATE_OFFLINE: _ClassVar[VolumeState]
    VOLUME_STATE_RETIRED: _ClassVar[VolumeState]

class JobKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_KIND_UNSPECIFIED: _ClassVar[JobKind]
    JOB_KIND_COMPACT: _ClassVar[JobKind]
    JOB_KIND_VERIFY: _ClassVar[JobKind]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
COMPRESSION_UNSPECIFIED: Compression
COMPRESSION_LZ4: Compression
CONSISTENCY_UNSPECIFIED: Consistency
CONSISTENCY_FAST: Consistency
OPERATION_UNSPECIFIED: Operation
OPERATION_PUT: Operation
OPERATION_INSERT: Operation
OPERATION_DELETE: Operation
OPERATION_RELOCATE: Operation
CODEC_UNSPECIFIED: Codec
CODEC_GZIP: Codec
CODEC_DEFLATE: Codec
CODEC_ZSTD: Codec
VOLUME_STATE_UNSPECIFIED: VolumeState
VOLUME_STATE_ONLINE: VolumeState
VOLUME_STATE_OFFLINE: VolumeState
VOLUME_STATE_RETIRED: VolumeState
JOB_KIND_UNSPECIFIED: JobKind
JOB_KIND_COMPACT: JobKind
JOB_KIND_VERIFY: JobKind
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_DONE: JobState
JOB_STATE_FAILED: JobState

class Packed(_message.Message):
    __slots__ = ("plain", "lz4")
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    LZ4_FIELD_NUMBER: _ClassVar[int]
    plain: bytes
    lz4: bytes
    def __init__(self, plain: _Optional[bytes] = ..., lz4: _Optional[bytes] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("version", "store_id", "seed", "batch_rows_max", "message_bytes_max", "read_only", "epoch")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    version: str
    store_id: bytes
    seed: int
    batch_rows_max: int
    message_bytes_max: int
    read_only: bool
    epoch: int
    def __init__(self, version: _Optional[str] = ..., store_id: _Optional[bytes] = ..., seed: _Optional[int] = ..., batch_rows_max: _Optional[int] = ..., message_bytes_max: _Optional[int] = ..., read_only: bool = ..., epoch: _Optional[int] = ...) -> None: ...

class Meant(_message.Message):
    __slots__ = ("dataset", "cluster")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    dataset: int
    cluster: bytes
    def __init__(self, dataset: _Optional[int] = ..., cluster: _Optional[bytes] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("dataset", "ids", "reply_compression", "consistency", "meant")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    REPLY_COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    ids: Packed
    reply_compression: Compression
    consistency: Consistency
    meant: Meant
    def __init__(self, dataset: _Optional[str] = ..., ids: _Optional[_Union[Packed, _Mapping]] = ..., reply_compression: _Optional[_Union[Compression, str]] = ..., consistency: _Optional[_Union[Consistency, str]] = ..., meant: _Optional[_Union[Meant, _Mapping]] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("states", "locations", "versions", "epoch")
    STATES_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    states: Packed
    locations: Packed
    versions: Packed
    epoch: int
    def __init__(self, states: _Optional[_Union[Packed, _Mapping]] = ..., locations: _Optional[_Union[Packed, _Mapping]] = ..., versions: _Optional[_Union[Packed, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("dataset", "operation", "ids", "locations", "versions", "reply_compression", "meant")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REPLY_COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    operation: Operation
    ids: Packed
    locations: Packed
    versions: Packed
    reply_compression: Compression
    meant: Meant
    def __init__(self, dataset: _Optional[str] = ..., operation: _Optional[_Union[Operation, str]] = ..., ids: _Optional[_Union[Packed, _Mapping]] = ..., locations: _Optional[_Union[Packed, _Mapping]] = ..., versions: _Optional[_Union[Packed, _Mapping]] = ..., reply_compression: _Optional[_Union[Compression, str]] = ..., meant: _Optional[_Union[Meant, _Mapping]] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("outcomes", "locations", "versions", "epoch")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    outcomes: Packed
    locations: Packed
    versions: Packed
    epoch: int
    def __init__(self, outcomes: _Optional[_Union[Packed, _Mapping]] = ..., locations: _Optional[_Union[Packed, _Mapping]] = ..., versions: _Optional[_Union[Packed, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("dataset", "page_rows", "sample", "tag", "after", "shard_index", "shard_count", "reply_compression", "meant")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    PAGE_ROWS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SHARD_INDEX_FIELD_NUMBER: _ClassVar[int]
    SHARD_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLY_COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    page_rows: int
    sample: float
    tag: int
    after: bytes
    shard_index: int
    shard_count: int
    reply_compression: Compression
    meant: Meant
    def __init__(self, dataset: _Optional[str] = ..., page_rows: _Optional[int] = ..., sample: _Optional[float] = ..., tag: _Optional[int] = ..., after: _Optional[bytes] = ..., shard_index: _Optional[int] = ..., shard_count: _Optional[int] = ..., reply_compression: _Optional[_Union[Compression, str]] = ..., meant: _Optional[_Union[Meant, _Mapping]] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("ids", "locations", "versions", "cursor", "done")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ids: Packed
    locations: Packed
    versions: Packed
    cursor: bytes
    done: bool
    def __init__(self, ids: _Optional[_Union[Packed, _Mapping]] = ..., locations: _Optional[_Union[Packed, _Mapping]] = ..., versions: _Optional[_Union[Packed, _Mapping]] = ..., cursor: _Optional[bytes] = ..., done: bool = ...) -> None: ...

class Location(_message.Message):
    __slots__ = ("volume", "length", "offset", "checksum", "tag")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    volume: int
    length: int
    offset: int
    checksum: int
    tag: int
    def __init__(self, volume: _Optional[int] = ..., length: _Optional[int] = ..., offset: _Optional[int] = ..., checksum: _Optional[int] = ..., tag: _Optional[int] = ...) -> None: ...

class EntryName(_message.Message):
    __slots__ = ("id", "key")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    key: str
    def __init__(self, id: _Optional[bytes] = ..., key: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("dataset", "entry", "consistency", "meant")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    entry: EntryName
    consistency: Consistency
    meant: Meant
    def __init__(self, dataset: _Optional[str] = ..., entry: _Optional[_Union[EntryName, _Mapping]] = ..., consistency: _Optional[_Union[Consistency, str]] = ..., meant: _Optional[_Union[Meant, _Mapping]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("location", "version")
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    location: Location
    version: int
    def __init__(self, location: _Optional[_Union[Location, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("dataset", "entry", "location", "meant")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    entry: EntryName
    location: Location
    meant: Meant
    def __init__(self, dataset: _Optional[str] = ..., entry: _Optional[_Union[EntryName, _Mapping]] = ..., location: _Optional[_Union[Location, _Mapping]] = ..., meant: _Optional[_Union[Meant, _Mapping]] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("dataset", "entry", "meant")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    MEANT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    entry: EntryName
    meant: Meant
    def __init__(self, dataset: _Optional[str] = ..., entry: _Optional[_Union[EntryName, _Mapping]] = ..., meant: _Optional[_Union[Meant, _Mapping]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateDatasetRequest(_message.Message):
    __slots__ = ("name", "ttl_s", "bottom_filter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FILTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttl_s: float
    bottom_filter: bool
    def __init__(self, name: _Optional[str] = ..., ttl_s: _Optional[float] = ..., bottom_filter: bool = ...) -> None: ...

class CreateDatasetResponse(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class DropDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DropDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("names", "numbers")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class Volume(_message.Message):
    __slots__ = ("number", "uri", "name", "state", "size_bytes", "codec")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    number: int
    uri: str
    name: str
    state: VolumeState
    size_bytes: int
    codec: Codec
    def __init__(self, number: _Optional[int] = ..., uri: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[VolumeState, str]] = ..., size_bytes: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ...) -> None: ...

class VolumeName(_message.Message):
    __slots__ = ("number", "uri")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    number: int
    uri: str
    def __init__(self, number: _Optional[int] = ..., uri: _Optional[str] = ...) -> None: ...

class AddVolumeRequest(_message.Message):
    __slots__ = ("uri", "name", "size_bytes", "codec")
    URI_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    uri: str
    name: str
    size_bytes: int
    codec: Codec
    def __init__(self, uri: _Optional[str] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ...) -> None: ...

class AddVolumeResponse(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ...) -> None: ...

class AddVolumesRequest(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[AddVolumeRequest]
    def __init__(self, volumes: _Optional[_Iterable[_Union[AddVolumeRequest, _Mapping]]] = ...) -> None: ...

class AddVolumesResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class GetVolumesRequest(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[VolumeName]
    def __init__(self, volumes: _Optional[_Iterable[_Union[VolumeName, _Mapping]]] = ...) -> None: ...

class GetVolumesResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class ListVolumesRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class ListVolumesResponse(_message.Message):
    __slots__ = ("volumes", "done")
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    done: bool
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ..., done: bool = ...) -> None: ...

class UpdateVolumeRequest(_message.Message):
    __slots__ = ("volume", "uri", "state")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    volume: VolumeName
    uri: str
    state: VolumeState
    def __init__(self, volume: _Optional[_Union[VolumeName, _Mapping]] = ..., uri: _Optional[str] = ..., state: _Optional[_Union[VolumeState, str]] = ...) -> None: ...

class UpdateVolumeResponse(_message.Message):
    __slots__ = ("volume",)
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    volume: Volume
    def __init__(self, volume: _Optional[_Union[Volume, _Mapping]] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FlushResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "kind", "state", "done", "total", "error", "report")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: JobKind
    state: JobState
    done: int
    total: int
    error: JobError
    report: VerifyReport
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., report: _Optional[_Union[VerifyReport, _Mapping]] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class VerifyReport(_message.Message):
    __slots__ = ("segments", "pages", "damages", "damages_total")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    segments: int
    pages: int
    damages: _containers.RepeatedCompositeFieldContainer[Damage]
    damages_total: int
    def __init__(self, segments: _Optional[int] = ..., pages: _Optional[int] = ..., damages: _Optional[_Iterable[_Union[Damage, _Mapping]]] = ..., damages_total: _Optional[int] = ...) -> None: ...

class Damage(_message.Message):
    __slots__ = ("path", "dataset", "page", "first", "last", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    dataset: str
    page: int
    first: bytes
    last: bytes
    reason: str
    def __init__(self, path: _Optional[str] = ..., dataset: _Optional[str] = ..., page: _Optional[int] = ..., first: _Optional[bytes] = ..., last: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class StartJobRequest(_message.Message):
    __slots__ = ("kind", "request_id", "discard_damaged")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DISCARD_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    kind: JobKind
    request_id: str
    discard_damaged: bool
    def __init__(self, kind: _Optional[_Union[JobKind, str]] = ..., request_id: _Optional[str] = ..., discard_damaged: bool = ...) -> None: ...

class StartJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id", "wait_s", "damages_from")
    ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FROM_FIELD_NUMBER: _ClassVar[int]
    id: str
    wait_s: float
    damages_from: int
    def __init__(self, id: _Optional[str] = ..., wait_s: _Optional[float] = ..., damages_from: _Optional[int] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetMapRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Node(_message.Message):
    __slots__ = ("slot", "name", "address", "live")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    name: str
    address: str
    live: bool
    def __init__(self, slot: _Optional[int] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., live: bool = ...) -> None: ...

class GetMapResponse(_message.Message):
    __slots__ = ("epoch", "partitions", "replicas", "write_quorum", "nodes", "owners", "cluster")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    WRITE_QUORUM_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    partitions: int
    replicas: int
    write_quorum: int
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    owners: Packed
    cluster: bytes
    def __init__(self, epoch: _Optional[int] = ..., partitions: _Optional[int] = ..., replicas: _Optional[int] = ..., write_quorum: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., owners: _Optional[_Union[Packed, _Mapping]] = ..., cluster: _Optional[bytes] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("path", "format", "read_only", "wal_sequence", "log_bytes", "volumes", "datasets")
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    WAL_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    path: str
    format: int
    read_only: bool
    wal_sequence: int
    log_bytes: int
    volumes: int
    datasets: _containers.RepeatedCompositeFieldContainer[DatasetStats]
    def __init__(self, path: _Optional[str] = ..., format: _Optional[int] = ..., read_only: bool = ..., wal_sequence: _Optional[int] = ..., log_bytes: _Optional[int] = ..., volumes: _Optional[int] = ..., datasets: _Optional[_Iterable[_Union[DatasetStats, _Mapping]]] = ...) -> None: ...

class DatasetStats(_message.Message):
    __slots__ = ("name", "ttl_s", "rows", "tombstones", "memtable_rows", "runs", "segments", "quarantined_runs", "disk_bytes", "memtable_bytes", "table_bytes", "merging")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONES_FIELD_NUMBER: _ClassVar[int]
    MEMTABLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_RUNS_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMTABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MERGING_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttl_s: float
    rows: int
    tombstones: int
    memtable_rows: int
    runs: int
    segments: int
    quarantined_runs: int
    disk_bytes: int
    memtable_bytes: int
    table_bytes: int
    merging: bool
    def __init__(self, name: _Optional[str] = ..., ttl_s: _Optional[float] = ..., rows: _Optional[int] = ..., tombstones: _Optional[int] = ..., memtable_rows: _Optional[int] = ..., runs: _Optional[int] = ..., segments: _Optional[int] = ..., quarantined_runs: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., memtable_bytes: _Optional[int] = ..., table_bytes: _Optional[int] = ..., merging: bool = ...) -> None: ...
