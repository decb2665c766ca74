"""What the nodes of a cluster hold, compared from outside: the map of one node, the digests of all."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
import numpy as np

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
    asking = _Asking(held)
    partitions = len(held.owners)
    digests: dict[int, Any] = {}
    agreed = np.zeros(partitions, np.uint64)
    for cut in (0, (1 << 64) - 1):  # first up to where tombstones may be gone, then everything else
        digests = {}
        for slot in np.unique(held.owners).tolist():
            if slot not in held.addresses:
                continue
            mine = np.flatnonzero((held.owners == slot).any(axis=1))
            with asking.channel(slot) as channel:
                ask = channel.unary_unary(PEER_METHODS["Digest"].path)
                out = np.zeros((partitions, BUCKETS), np.uint64)
                for start in range(0, len(mine), _GROUP):
                    part = mine[start : start + _GROUP]
                    request = peer.DigestRequest(
                        parties=asking.parties(slot), dataset="default", partitions=part.tolist(), cut=cut,
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


class _Asking:
    """Asks nodes what only nodes ask: in the name of the first of them that answers."""

    def __init__(self, held: Route) -> None:
        self._held = held
        self._stores: dict[int, bytes] = {}
        self._from, self._life = 0, 0
        for slot in held.addresses:
            with suppress(grpc.RpcError), self.channel(slot) as channel:
                describe = channel.unary_unary(METHODS["Describe"].path)
                raw = describe(pb.DescribeRequest().SerializeToString(), timeout=10)
                self._stores[slot] = pb.DescribeResponse.FromString(raw).store_id
        self._from = next(iter(self._stores))
        with self.channel(self._from) as channel:
            request = peer.StateRequest(parties=self.parties(self._from))
            raw = channel.unary_unary(PEER_METHODS["State"].path)(request.SerializeToString(), timeout=10)
            self._life = peer.StateResponse.FromString(raw).life

    def channel(self, slot: int) -> grpc.Channel:
        """Return a channel to a node."""
        return grpc.insecure_channel(
            self._held.addresses[slot], [("grpc.max_receive_message_length", 64 << 20)]
        )

    def parties(self, slot: int) -> peer.Parties:
        """Return between whom a request to a node is; its epoch is before all that have a digest."""
        return peer.Parties(
            cluster=self._held.cluster, to_slot=slot, to_store=self._stores.get(slot, b""),
            from_slot=self._from, from_store=self._stores[self._from], from_life=self._life,
        )  # fmt: skip
