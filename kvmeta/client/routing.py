"""Routing: in a cluster, IDs go straight to the nodes that own them, one call a node.

The map is asked for once and again when an answer tells of a newer one. A node that did not answer is passed
over for a while: its IDs go to their next owner, a call under way to it to another node. A client without a
map, or with an old one, is answered all the same, for any node coordinates: routing saves a hop, correctness
does not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import InputError
from kvmeta.mixing import DEFAULT_SEED, mixed_high
from kvmeta.protocol.columns import unpack
from kvmeta.protocol.messages import parse
from kvmeta.v1 import kvmeta_pb2 as pb

DOWN_S = 5.0
"""How long a node that did not answer is passed over."""
AWAY_S = 5.0
"""How old a map may be that says that a node is away."""
_NOBODY = 0xFFFF
_SLOT: np.dtype[np.uint16] = np.dtype("<u2")
Ids = NDArray[np.void]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Route:
    """The map at one epoch: `owners` u2[partitions, replicas] of slots, and the nodes' addresses."""

    epoch: int
    owners: NDArray[np.uint16]
    addresses: dict[int, str]
    away: frozenset[int]
    """Nodes that the others miss, or that have no address."""
    cluster: bytes = b""

    @staticmethod
    def of(raw: bytes) -> Route:
        """Return the route of a GetMap reply; InputError where it is none."""
        reply = parse(pb.GetMapResponse, raw)
        partitions, replicas = reply.partitions, reply.replicas
        if not partitions or partitions & (partitions - 1) or not reply.epoch or not replicas:
            raise InputError(
                f"a map of {partitions} partitions with {replicas} replicas at epoch {reply.epoch}"
            )
        owners = unpack(reply.owners, _SLOT, partitions * replicas, "owners").reshape(partitions, replicas)
        addresses = {node.slot: node.address for node in reply.nodes if node.address}
        away = frozenset(node.slot for node in reply.nodes if not node.live or not node.address)
        return Route(reply.epoch, owners, addresses, away, reply.cluster)

    def first(self, down: frozenset[str]) -> NDArray[np.uint16]:
        """Return u2[partitions]: of each the first owner that is neither away nor down, else the first."""
        out = self.owners[:, 0].copy()
        bad = [*self.away, *(slot for slot, address in self.addresses.items() if address in down)]
        if not bad:
            return out
        open_ = np.isin(out, bad)
        for rank in range(1, self.owners.shape[1]):
            better = open_ & ~np.isin(self.owners[:, rank], [*bad, _NOBODY])
            out[better] = self.owners[better, rank]
            open_ &= ~better
        return out

    def partitions_of(self, ids: Ids, seed: int) -> NDArray[np.uint64]:
        """Return u8[n]: the partitions of IDs, the top bits of their mixed form."""
        bits = len(self.owners).bit_length() - 1
        return mixed_high(ids, seed) >> np.uint64(64 - bits) if bits else np.zeros(len(ids), np.uint64)


class Router:
    """Where calls go: to the `seeds` that the caller named, and where there is a map, to owners."""

    def __init__(self, seeds: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.seeds = tuple(seeds)
        self.route: Route | None = None
        self.routes = False
        """Whether there is a map to ask for."""
        self._seed = DEFAULT_SEED
        self._newest = 0
        self._clock = clock
        self._down: dict[str, float] = {}  # never changed, only replaced: threads share it
        self._taken = 0.0
        self._first: tuple[Route, frozenset[str], NDArray[np.uint16]] | None = None
        self._turns: tuple[Route, dict[int, tuple[str, ...]]] | None = None

    def describe(self, epoch: int, seed: int) -> None:
        """Take what a server says of itself: epoch 0 is no cluster."""
        self.routes, self._seed = epoch != 0, seed

    @property
    def cluster(self) -> bytes:
        """Return the ID of the cluster; b"" where none is known."""
        return b"" if self.route is None else self.route.cluster

    @property
    def needs_map(self) -> bool:
        """Return whether the map is to be asked for now."""
        if not self.routes:
            return False
        if self.route is None or self._newest > self.route.epoch:
            return True
        return bool(self.route.away) and self._clock() - self._taken > AWAY_S

    def take(self, raw: bytes) -> None:
        """Take over a GetMap reply; InputError where it is of another cluster than the one before."""
        route = Route.of(raw)
        if self.route is not None and route.cluster != self.route.cluster:
            raise InputError(
                f"the map of another cluster ({route.cluster.hex()}) than the one before "
                f"({self.route.cluster.hex()}); do two clusters share an address?"
            )
        if self.route is None or route.epoch >= self.route.epoch:
            self.route = route
        self._newest = self.route.epoch
        self._taken = self._clock()

    def saw(self, epoch: int) -> None:
        """Note the epoch that an answer told."""
        self._newest = max(self._newest, epoch)

    def missed(self, address: str) -> None:
        """Note that a node did not answer."""
        now = self._clock()
        self._down = {**{a: until for a, until in self._down.items() if until > now}, address: now + DOWN_S}
        if self.route is not None:
            self._newest = max(self._newest, self.route.epoch + 1)  # what the others know may have changed

    def addresses(self) -> tuple[str, ...]:
        """Return whom to ask in turn, those last that are known not to answer."""
        return self.ordered(self._known())

    def ordered(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Return addresses with those last that are known not to answer, as of now."""
        if not self._down and (self.route is None or not self.route.away):
            return addresses
        down = self._down_now()
        if self.route is not None and self.route.away:
            down |= {self.route.addresses.get(slot, "") for slot in self.route.away}
        return tuple(sorted(addresses, key=lambda address: address in down))

    def split(self, ids: Ids) -> list[tuple[tuple[str, ...], Rows | None]]:
        """Return whom to ask in turn, and the rows i8[m] of `ids` for it; None: all of them, in order.

        Who is known not to answer is told when the call is sent (`ordered`), which may be later.
        """
        route = self.route
        if route is None or not len(ids):
            return [(self._known(), None)]
        slots = self._first_of(route)[route.partitions_of(ids, self._seed)]
        counts = np.bincount(slots)
        named: list[int] = counts.nonzero()[0].tolist()
        if len(named) == 1:
            return [(self._in_turn(route, named[0]), None)]
        shares = np.split(np.argsort(slots, kind="stable"), np.cumsum(counts[named])[:-1])
        return [(self._in_turn(route, slot), share) for slot, share in zip(named, shares, strict=True)]

    def _known(self) -> tuple[str, ...]:
        route = self.route
        return self.seeds if route is None else tuple(dict.fromkeys((*self.seeds, *route.addresses.values())))

    def _in_turn(self, route: Route, slot: int) -> tuple[str, ...]:
        """Return whom to ask in turn for what a node owns: another second for each, nobody everybody's."""
        if self._turns is None or self._turns[0] is not route:
            self._turns = route, {}
        turns = self._turns[1]
        if slot not in turns:
            known, first = self._known(), route.addresses.get(slot, "")
            at = known.index(first) if first in known else 0
            turns[slot] = known[at:] + known[:at]
        return turns[slot]

    def _first_of(self, route: Route) -> NDArray[np.uint16]:
        down = self._down_now()
        held = self._first
        if held is None or held[0] is not route or held[1] != down:
            held = self._first = (route, down, route.first(down))
        return held[2]

    def _down_now(self) -> frozenset[str]:
        down = self._down
        if not down:
            return frozenset()
        now = self._clock()
        return frozenset(address for address, until in down.items() if until > now)
