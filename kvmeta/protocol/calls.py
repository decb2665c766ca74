"""The calls of kvmeta.v1.StoreService: their names, and the messages they take and return."""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf import message_factory
from google.protobuf.message import Message

from kvmeta.v1 import kvmeta_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["StoreService"]

SERVICE: str = _SERVICE.full_name
"""The service's name, as gRPC's paths have it."""


class Method(NamedTuple):
    """One call: the path that a channel asks for, the types of request and response."""

    path: str
    request: type[Message]
    response: type[Message]


METHODS = {
    method.name: Method(
        f"/{SERVICE}/{method.name}",
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )
    for method in _SERVICE.methods
}
"""All calls by name."""
