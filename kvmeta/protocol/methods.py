"""Every call of kvmeta.v1, one row each: what it is, said once.

The server takes from a row which threads answer the call, and whether its answer may be given up; the SDK
takes whether it may be sent again, or asked of another server. `make protos` writes the table of calls of
docs/protocol.md from the rows. A call's messages and its path come from the proto files by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from kvmeta.v1 import cluster_pb2 as cluster
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer


class Lane(Enum):
    """Who answers a call. What waits for a disk, for room or for merges keeps no lookup waiting."""

    LOOKUPS = "lookups"
    """As many threads as there are cores."""
    WRITES = "writes"
    """Many threads, which wait for the disk together."""
    OTHERS = "others"
    """A few threads, for what takes long and comes seldom."""
    LOOP = "loop"
    """The event loop: it waits for other nodes, or for a job."""


class Row(NamedTuple):
    """What there is to say of a call."""

    name: str
    says: str
    """What it does, in a few words."""
    lane: Lane
    repeatable: bool | Callable[[Any], bool] = True
    """Whether sending it twice does what sending it once does; a function where the request decides that."""
    quick: bool = False
    """Whether another server is asked where one does not answer soon: it is short, and changes nothing."""
    changes: bool = False
    """Whether it changes what the store answers: a lost reply leaves that unknown, so none is given up."""
    while_draining: bool = False
    """Whether a server answers it while it is shutting down."""


def _put_or_delete(request: pb.WriteRequest) -> bool:
    """PUT and DELETE may"""  # noqa: D400 - as the page has it
    return request.operation in (pb.OPERATION_PUT, pb.OPERATION_DELETE)


def _by_number_or_no_move(request: pb.UpdateVolumeRequest) -> bool:
    """if it names the volume by number or changes no URI"""  # noqa: D400, D403
    return not request.HasField("uri") or request.volume.WhichOneof("name") == "number"


def _has_request_id(request: pb.StartJobRequest) -> bool:
    """with a `request_id`"""  # noqa: D400, D403
    return bool(request.request_id)


_L, _W, _O, _LOOP = Lane.LOOKUPS, Lane.WRITES, Lane.OTHERS, Lane.LOOP
STORE_ROWS = (
    Row("Describe", "what the server is and accepts; call it first", _L, quick=True),
    Row("Lookup", "locations of a batch of IDs", _L, quick=True),
    Row("Write", "PUT, INSERT, DELETE or RELOCATE a batch", _W, repeatable=_put_or_delete, changes=True),
    Row("Scan", "the next page of entries", _O),
    Row("Get", "one entry, by ID or key", _L, quick=True),
    Row("Put", "set one entry", _W, changes=True),
    Row("Delete", "remove one entry", _W, changes=True),
    Row("CreateDataset", "make a dataset", _O, repeatable=False, changes=True),
    Row("DropDataset", "remove a dataset and its entries", _O, repeatable=False, changes=True),
    Row("ListDatasets", "the datasets' names", _L, quick=True),
    Row("AddVolume", "register a volume's URI", _O, changes=True),  # a known URI has its number already
    Row("AddVolumes", "register up to 1,000 volumes at once", _O, changes=True),
    Row(
        "GetVolumes",
        "volumes by number or URI: the first of those asked, as many as fit 2 MiB",
        _L,
        quick=True,
    ),
    Row("ListVolumes", "the next volumes by number", _L, quick=True),
    Row(
        "UpdateVolume",
        "change a volume's URI or state",
        _O,
        repeatable=_by_number_or_no_move,
        changes=True,
    ),
    Row("Flush", "write what is in memory to runs", _O),
    Row("StartJob", "start long work", _LOOP, repeatable=_has_request_id, changes=True),
    # Whoever waits for a job may ask for its end while the server shuts down.
    Row("GetJob", "a job's progress and result", _LOOP, while_draining=True),
    Row("GetMap", "a cluster's map, so that a client can ask owners itself", _L, quick=True),
    Row("Stats", "figures", _L),
)
"""What clients ask of a store: StoreService."""
CLUSTER_ROWS = (
    Row("GetStatus", "the cluster as the node sees it", _LOOP),
    Row("ChangeMembers", "change the members", _LOOP, repeatable=False, changes=True),
    Row("Repair", "compare all replicas now and bring each what it lacks", _LOOP),
    Row("Recover", "put back what etcd lost", _LOOP, repeatable=False, changes=True),
)
"""What operators ask of a cluster: ClusterService."""
PEER_ROWS = (
    Row("Apply", "merge rows into what is held", _LOOP, changes=True),
    Row("Fetch", "what is held of IDs", _LOOP),
    Row("Decide", "decide an insert or a relocate", _LOOP, repeatable=False, changes=True),
    Row("Rows", "the next rows of a stretch", _LOOP),
    Row("Digest", "digests of partitions", _LOOP),
    Row("Agree", "all owners agreed up to a version", _LOOP, changes=True),
    Row("State", "how the node is", _LOOP),
    Row("Tell", "there are newer tables", _LOOP, changes=True),
    Row("Remembered", "what it remembers of map, tables and volumes", _LOOP),
    Row("Seen", "when a node answered this one last", _LOOP),
)
"""What the nodes of a cluster ask of each other: PeerService."""


class Method:
    """A call: its row, and what the proto files say of it."""

    def __init__(self, row: Row, described: MethodDescriptor) -> None:
        self.row = row
        self.name = row.name
        self.described = described

    def __repr__(self) -> str:
        return f"<{self.path}>"

    @cached_property
    def path(self) -> str:
        """Return the path that a gRPC channel asks for."""
        return f"/{self.described.containing_service.full_name}/{self.name}"

    @cached_property
    def request(self) -> type[Message]:
        """Return the type of its request."""
        return message_factory.GetMessageClass(self.described.input_type)

    @cached_property
    def response(self) -> type[Message]:
        """Return the type of its response."""
        return message_factory.GetMessageClass(self.described.output_type)

    @cached_property
    def function(self) -> str:
        """Return what the function is called that answers it, such as "get_map"."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower()

    def may_repeat(self, request: Any) -> bool:
        """Return whether sending `request` twice does what sending it once does."""
        repeatable = self.row.repeatable
        return repeatable if isinstance(repeatable, bool) else repeatable(request)


def _methods(service: ServiceDescriptor, rows: Sequence[Row]) -> dict[str, Method]:
    return {row.name: Method(row, service.methods_by_name[row.name]) for row in rows}


_STORE = pb.DESCRIPTOR.services_by_name["StoreService"]
_CLUSTER = cluster.DESCRIPTOR.services_by_name["ClusterService"]
_PEER = peer.DESCRIPTOR.services_by_name["PeerService"]

STORE_SERVICE: str = _STORE.full_name
"""A service's name, as gRPC's paths have it."""
CLUSTER_SERVICE: str = _CLUSTER.full_name
PEER_SERVICE: str = _PEER.full_name

STORE_METHODS = _methods(_STORE, STORE_ROWS)
"""The calls of clients, by name."""
CLUSTER_METHODS = _methods(_CLUSTER, CLUSTER_ROWS)
"""The calls of a cluster's operators."""
PEER_METHODS = _methods(_PEER, PEER_ROWS)
"""The calls between the nodes of a cluster."""
METHODS = STORE_METHODS | CLUSTER_METHODS
"""What a client may call."""
