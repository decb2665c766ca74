"""What the nodes of a cluster hold, compared from outside: the map of one node, the digests of all."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

import kvmeta.operators
from kvmeta.client.options import addresses_of
from kvmeta.client.routing import Route
from kvmeta.protocol.methods import METHODS, PEER_METHODS
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.replica import BUCKETS

_GROUP = 64


def route(target: str) -> Route:
    """Return the map as the first node of a target has it."""
    with grpc.insecure_channel(addresses_of(target)[0]) as channel:
        raw = channel.unary_unary(METHODS["GetMap"].path)(pb.GetMapRequest().SerializeToString(), timeout=10)
    return Route.of(raw)


def differing(target: str) -> int:
    """Return how many partitions have replicas with different digests."""
    held = route(target)
    with kvmeta.operators.open(target) as operator:
        cluster_id = bytes.fromhex(operator.status().cluster)
    partitions = len(held.owners)
    digests: dict[int, Any] = {}
    agreed = np.zeros(partitions, np.uint64)
    for cut in (0, (1 << 64) - 1):  # first up to where tombstones may be gone, then everything else
        digests = {}
        for slot in np.unique(held.owners).tolist():
            if slot not in held.addresses:
                continue
            mine = np.flatnonzero((held.owners == slot).any(axis=1))
            with grpc.insecure_channel(
                held.addresses[slot], [("grpc.max_receive_message_length", 64 << 20)]
            ) as channel:
                ask = channel.unary_unary(PEER_METHODS["Digest"].path)
                out = np.zeros((partitions, BUCKETS), np.uint64)
                for start in range(0, len(mine), _GROUP):
                    part = mine[start : start + _GROUP]
                    request = peer.DigestRequest(
                        cluster=cluster_id, dataset="default", partitions=part.tolist(), cut=cut,
                        purged=agreed[part].tolist(),
                    )  # fmt: skip
                    reply = peer.DigestResponse.FromString(ask(request.SerializeToString(), timeout=60))
                    out[part] = np.frombuffer(reply.digests.plain, np.uint64).reshape(-1, BUCKETS)
                    if not cut:
                        told = np.frombuffer(reply.agreed.plain, np.uint64)
                        agreed[part] = np.maximum(agreed[part], told)
            digests[slot] = out
    differ = 0
    for partition, owners in enumerate(held.owners.tolist()):
        each = [digests[slot][partition] for slot in owners if slot in digests]
        differ += any((other != each[0]).any() for other in each[1:])
    return differ
