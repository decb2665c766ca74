"""The calls of the services of kvmeta.v1: their names, and the messages they take and return."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from kvmeta.v1 import cluster_pb2 as cluster
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer

_SERVICE = pb.DESCRIPTOR.services_by_name["StoreService"]

SERVICE: str = _SERVICE.full_name
"""The service's name, as gRPC's paths have it."""


class Method(NamedTuple):
    """One call: the path that a channel asks for, the types of request and response."""

    path: str
    request: type[Message]
    response: type[Message]


def methods_of(service: ServiceDescriptor) -> dict[str, Method]:
    """Return a service's calls by name."""
    return {
        method.name: Method(
            f"/{service.full_name}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in service.methods
    }


METHODS = methods_of(_SERVICE)
"""The calls of clients by name."""
PEER_SERVICE, CLUSTER_SERVICE = "kvmeta.v1.PeerService", "kvmeta.v1.ClusterService"
PEER_METHODS = methods_of(peer.DESCRIPTOR.services_by_name["PeerService"])
"""The calls between the nodes of a cluster."""
CLUSTER_METHODS = methods_of(cluster.DESCRIPTOR.services_by_name["ClusterService"])
"""The calls of a cluster's operators."""
ALL_METHODS = METHODS | CLUSTER_METHODS
"""What a client may call."""
