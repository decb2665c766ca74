from kvmeta.v1 import kvmeta_pb2 as _kvmeta_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Bound(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOUND_UNSPECIFIED: _ClassVar[Bound]
    BOUND_AGREED: _ClassVar[Bound]
    BOUND_NONE: _ClassVar[Bound]
BOUND_UNSPECIFIED: Bound
BOUND_AGREED: Bound
BOUND_NONE: Bound

class Parties(_message.Message):
    __slots__ = ("cluster", "to_slot", "to_store", "from_slot", "from_store", "from_epoch", "from_digest", "from_life")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    TO_SLOT_FIELD_NUMBER: _ClassVar[int]
    TO_STORE_FIELD_NUMBER: _ClassVar[int]
    FROM_SLOT_FIELD_NUMBER: _ClassVar[int]
    FROM_STORE_FIELD_NUMBER: _ClassVar[int]
    FROM_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FROM_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FROM_LIFE_FIELD_NUMBER: _ClassVar[int]
    cluster: bytes
    to_slot: int
    to_store: bytes
    from_slot: int
    from_store: bytes
    from_epoch: int
    from_digest: int
    from_life: int
    def __init__(self, cluster: _Optional[bytes] = ..., to_slot: _Optional[int] = ..., to_store: _Optional[bytes] = ..., from_slot: _Optional[int] = ..., from_store: _Optional[bytes] = ..., from_epoch: _Optional[int] = ..., from_digest: _Optional[int] = ..., from_life: _Optional[int] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("parties", "dataset", "epoch", "rows", "bound")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    dataset: str
    epoch: int
    rows: _kvmeta_pb2.Packed
    bound: Bound
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., dataset: _Optional[str] = ..., epoch: _Optional[int] = ..., rows: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., bound: _Optional[_Union[Bound, str]] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("epoch", "outcomes", "versions")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    outcomes: _kvmeta_pb2.Packed
    versions: _kvmeta_pb2.Packed
    def __init__(self, epoch: _Optional[int] = ..., outcomes: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., versions: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("parties", "dataset", "epoch", "ids", "versions_only")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_ONLY_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    dataset: str
    epoch: int
    ids: _kvmeta_pb2.Packed
    versions_only: bool
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., dataset: _Optional[str] = ..., epoch: _Optional[int] = ..., ids: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., versions_only: bool = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("epoch", "states", "versions", "locations")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    states: _kvmeta_pb2.Packed
    versions: _kvmeta_pb2.Packed
    locations: _kvmeta_pb2.Packed
    def __init__(self, epoch: _Optional[int] = ..., states: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., versions: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., locations: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("parties", "dataset", "epoch", "operation", "rows", "expired")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    dataset: str
    epoch: int
    operation: _kvmeta_pb2.Operation
    rows: _kvmeta_pb2.Packed
    expired: int
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., dataset: _Optional[str] = ..., epoch: _Optional[int] = ..., operation: _Optional[_Union[_kvmeta_pb2.Operation, str]] = ..., rows: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., expired: _Optional[int] = ...) -> None: ...

class DecideResponse(_message.Message):
    __slots__ = ("epoch", "outcomes", "rows")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    outcomes: _kvmeta_pb2.Packed
    rows: _kvmeta_pb2.Packed
    def __init__(self, epoch: _Optional[int] = ..., outcomes: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., rows: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ...) -> None: ...

class RowsRequest(_message.Message):
    __slots__ = ("parties", "dataset", "epoch", "first", "last", "page_rows", "reply_compression")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    PAGE_ROWS_FIELD_NUMBER: _ClassVar[int]
    REPLY_COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    dataset: str
    epoch: int
    first: int
    last: int
    page_rows: int
    reply_compression: _kvmeta_pb2.Compression
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., dataset: _Optional[str] = ..., epoch: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., page_rows: _Optional[int] = ..., reply_compression: _Optional[_Union[_kvmeta_pb2.Compression, str]] = ...) -> None: ...

class RowsResponse(_message.Message):
    __slots__ = ("epoch", "until", "rows")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    until: int
    rows: _kvmeta_pb2.Packed
    def __init__(self, epoch: _Optional[int] = ..., until: _Optional[int] = ..., rows: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ...) -> None: ...

class DigestRequest(_message.Message):
    __slots__ = ("parties", "dataset", "partitions", "cut", "purged", "expired", "promise")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    PURGED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    dataset: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    cut: int
    purged: _containers.RepeatedScalarFieldContainer[int]
    expired: int
    promise: bool
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., dataset: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ..., cut: _Optional[int] = ..., purged: _Optional[_Iterable[int]] = ..., expired: _Optional[int] = ..., promise: bool = ...) -> None: ...

class DigestResponse(_message.Message):
    __slots__ = ("digests", "agreed")
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    digests: _kvmeta_pb2.Packed
    agreed: _kvmeta_pb2.Packed
    def __init__(self, digests: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ..., agreed: _Optional[_Union[_kvmeta_pb2.Packed, _Mapping]] = ...) -> None: ...

class AgreeRequest(_message.Message):
    __slots__ = ("parties", "dataset", "partitions", "version")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    dataset: str
    partitions: _containers.RepeatedScalarFieldContainer[int]
    version: int
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., dataset: _Optional[str] = ..., partitions: _Optional[_Iterable[int]] = ..., version: _Optional[int] = ...) -> None: ...

class AgreeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("parties",)
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ...) -> None: ...

class StateResponse(_message.Message):
    __slots__ = ("name", "epoch", "copied", "hints", "leftover", "unix_ms", "agreed", "rows_copied", "damaged", "mended", "hints_dropped", "life")
    class HintsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    LEFTOVER_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    ROWS_COPIED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    MENDED_FIELD_NUMBER: _ClassVar[int]
    HINTS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    copied: _containers.RepeatedScalarFieldContainer[int]
    hints: _containers.ScalarMap[str, int]
    leftover: int
    unix_ms: int
    agreed: int
    rows_copied: int
    damaged: int
    mended: int
    hints_dropped: int
    life: int
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., copied: _Optional[_Iterable[int]] = ..., hints: _Optional[_Mapping[str, int]] = ..., leftover: _Optional[int] = ..., unix_ms: _Optional[int] = ..., agreed: _Optional[int] = ..., rows_copied: _Optional[int] = ..., damaged: _Optional[int] = ..., mended: _Optional[int] = ..., hints_dropped: _Optional[int] = ..., life: _Optional[int] = ...) -> None: ...

class RememberedRequest(_message.Message):
    __slots__ = ("parties", "pages_from")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FROM_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    pages_from: int
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., pages_from: _Optional[int] = ...) -> None: ...

class RememberedResponse(_message.Message):
    __slots__ = ("map", "tables", "pages_serial", "pages", "done")
    class PagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: bytes
        def __init__(self, key: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...
    MAP_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    PAGES_SERIAL_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    map: bytes
    tables: bytes
    pages_serial: int
    pages: _containers.ScalarMap[int, bytes]
    done: bool
    def __init__(self, map: _Optional[bytes] = ..., tables: _Optional[bytes] = ..., pages_serial: _Optional[int] = ..., pages: _Optional[_Mapping[int, bytes]] = ..., done: bool = ...) -> None: ...

class TellRequest(_message.Message):
    __slots__ = ("parties", "tables")
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    parties: Parties
    tables: bytes
    def __init__(self, parties: _Optional[_Union[Parties, _Mapping]] = ..., tables: _Optional[bytes] = ...) -> None: ...

class TellResponse(_message.Message):
    __slots__ = ("serial",)
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    serial: int
    def __init__(self, serial: _Optional[int] = ...) -> None: ...

class SeenRequest(_message.Message):
    __slots__ = ("cluster", "to_slot", "to_store", "slot")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    TO_SLOT_FIELD_NUMBER: _ClassVar[int]
    TO_STORE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    cluster: bytes
    to_slot: int
    to_store: bytes
    slot: int
    def __init__(self, cluster: _Optional[bytes] = ..., to_slot: _Optional[int] = ..., to_store: _Optional[bytes] = ..., slot: _Optional[int] = ...) -> None: ...

class SeenResponse(_message.Message):
    __slots__ = ("answered", "ago_s")
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    AGO_S_FIELD_NUMBER: _ClassVar[int]
    answered: bool
    ago_s: float
    def __init__(self, answered: bool = ..., ago_s: _Optional[float] = ...) -> None: ...
