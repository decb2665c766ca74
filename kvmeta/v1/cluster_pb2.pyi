from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Change(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_UNSPECIFIED: _ClassVar[Change]
    CHANGE_DRAIN: _ClassVar[Change]
    CHANGE_REMOVE: _ClassVar[Change]
    CHANGE_REBALANCE: _ClassVar[Change]
    CHANGE_WEIGHT: _ClassVar[Change]
    CHANGE_UNDRAIN: _ClassVar[Change]
CHANGE_UNSPECIFIED: Change
CHANGE_DRAIN: Change
CHANGE_REMOVE: Change
CHANGE_REBALANCE: Change
CHANGE_WEIGHT: Change
CHANGE_UNDRAIN: Change

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Member(_message.Message):
    __slots__ = ("slot", "name", "address", "zone", "weight", "state", "live", "answered", "epoch", "owned", "incoming", "hinted", "leftover", "clock_ms", "rows_copied", "agreed", "damaged", "mended", "waiting", "hints_dropped")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    INCOMING_FIELD_NUMBER: _ClassVar[int]
    HINTED_FIELD_NUMBER: _ClassVar[int]
    LEFTOVER_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    ROWS_COPIED_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    MENDED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    HINTS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    slot: int
    name: str
    address: str
    zone: str
    weight: float
    state: str
    live: bool
    answered: bool
    epoch: int
    owned: int
    incoming: int
    hinted: int
    leftover: int
    clock_ms: int
    rows_copied: int
    agreed: int
    damaged: int
    mended: int
    waiting: int
    hints_dropped: int
    def __init__(self, slot: _Optional[int] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., zone: _Optional[str] = ..., weight: _Optional[float] = ..., state: _Optional[str] = ..., live: bool = ..., answered: bool = ..., epoch: _Optional[int] = ..., owned: _Optional[int] = ..., incoming: _Optional[int] = ..., hinted: _Optional[int] = ..., leftover: _Optional[int] = ..., clock_ms: _Optional[int] = ..., rows_copied: _Optional[int] = ..., agreed: _Optional[int] = ..., damaged: _Optional[int] = ..., mended: _Optional[int] = ..., waiting: _Optional[int] = ..., hints_dropped: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("name", "cluster", "epoch", "partitions", "replicas", "write_quorum", "members", "moving", "etcd", "unavailable", "refusal", "fenced")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    WRITE_QUORUM_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    MOVING_FIELD_NUMBER: _ClassVar[int]
    ETCD_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    name: str
    cluster: bytes
    epoch: int
    partitions: int
    replicas: int
    write_quorum: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    moving: int
    etcd: bool
    unavailable: int
    refusal: str
    fenced: str
    def __init__(self, name: _Optional[str] = ..., cluster: _Optional[bytes] = ..., epoch: _Optional[int] = ..., partitions: _Optional[int] = ..., replicas: _Optional[int] = ..., write_quorum: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., moving: _Optional[int] = ..., etcd: bool = ..., unavailable: _Optional[int] = ..., refusal: _Optional[str] = ..., fenced: _Optional[str] = ...) -> None: ...

class ChangeMembersRequest(_message.Message):
    __slots__ = ("change", "node", "weight", "force")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    change: Change
    node: str
    weight: float
    force: bool
    def __init__(self, change: _Optional[_Union[Change, str]] = ..., node: _Optional[str] = ..., weight: _Optional[float] = ..., force: bool = ...) -> None: ...

class ChangeMembersResponse(_message.Message):
    __slots__ = ("epoch", "moves")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    moves: int
    def __init__(self, epoch: _Optional[int] = ..., moves: _Optional[int] = ...) -> None: ...

class RepairRequest(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    def __init__(self, dataset: _Optional[str] = ...) -> None: ...

class RepairResponse(_message.Message):
    __slots__ = ("partitions", "rows", "skipped")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    partitions: int
    rows: int
    skipped: int
    def __init__(self, partitions: _Optional[int] = ..., rows: _Optional[int] = ..., skipped: _Optional[int] = ...) -> None: ...

class RecoverRequest(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: int
    def __init__(self, plan: _Optional[int] = ...) -> None: ...

class RecoverResponse(_message.Message):
    __slots__ = ("reason", "epoch", "epoch_there", "serial", "serial_there", "silent", "members", "strangers", "datasets_back", "datasets_gone", "volumes", "epoch_new", "next_dataset", "next_volume", "plan", "done")
    REASON_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_THERE_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    SERIAL_THERE_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    STRANGERS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_BACK_FIELD_NUMBER: _ClassVar[int]
    DATASETS_GONE_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_NEW_FIELD_NUMBER: _ClassVar[int]
    NEXT_DATASET_FIELD_NUMBER: _ClassVar[int]
    NEXT_VOLUME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    epoch: int
    epoch_there: int
    serial: int
    serial_there: int
    silent: _containers.RepeatedScalarFieldContainer[str]
    members: _containers.RepeatedScalarFieldContainer[str]
    strangers: _containers.RepeatedScalarFieldContainer[str]
    datasets_back: _containers.RepeatedScalarFieldContainer[str]
    datasets_gone: _containers.RepeatedScalarFieldContainer[str]
    volumes: int
    epoch_new: int
    next_dataset: int
    next_volume: int
    plan: int
    done: bool
    def __init__(self, reason: _Optional[str] = ..., epoch: _Optional[int] = ..., epoch_there: _Optional[int] = ..., serial: _Optional[int] = ..., serial_there: _Optional[int] = ..., silent: _Optional[_Iterable[str]] = ..., members: _Optional[_Iterable[str]] = ..., strangers: _Optional[_Iterable[str]] = ..., datasets_back: _Optional[_Iterable[str]] = ..., datasets_gone: _Optional[_Iterable[str]] = ..., volumes: _Optional[int] = ..., epoch_new: _Optional[int] = ..., next_dataset: _Optional[int] = ..., next_volume: _Optional[int] = ..., plan: _Optional[int] = ..., done: bool = ...) -> None: ...
