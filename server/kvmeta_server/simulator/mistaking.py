"""Faults by which one thing is taken for another: addresses, histories of the map, lives of a node, datasets.

They are of every fifth seed's mix, and of whoever names them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from kvmeta.errors import KvmetaError
from kvmeta.version import EPOCH_MS, MS_SHIFT
from kvmeta_server.simulator.authority import HOST, KeySpace, Snapshot
from kvmeta_server.simulator.loop import Process
from kvmeta_server.simulator.network import Conditions, Network
from kvmeta_server.simulator.node import Shared, SimulatedNode
from kvmeta_server.simulator.recreating import Recreated
from kvmeta_server.simulator.workload import DATASET

SEEN_S = 20.0
"""After so long others have seen two lives of one node that both answer them."""
EVERY = 5
"""Of so many seeds one has these faults in its mix."""


class Scene(Protocol):
    """What of a simulation these faults need."""

    nodes: dict[str, SimulatedNode]
    network: Network
    shared: Shared
    space: KeySpace
    operator: Process
    replicas: int
    partitions: int
    snapshots: list[Snapshot]
    lost: bool
    marked: bool
    recreated: Recreated
    twins: list[SimulatedNode]
    addresses: set[str]

    def settled(self) -> bool:
        """Return whether all is there and in place, and every node knows it."""

    async def recover(self) -> None:
        """Recover etcd from what the nodes remember, again until it is done."""

    def add_node(self) -> None:
        """Let another node join."""


class Mistakes:
    """Makes them."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self._sim = scene
        self._rng = rng
        self.kinds: dict[str, Callable[[], bool]] = {
            "swapped addresses": self._swap_addresses,
            "another's address": self._take_address,
            "stray agreement": self._stray_agreement,
            "etcd set back": self._set_back,
            "etcd emptied": self._empty,
            "twin": self._twin,
            "recreate": self._recreate,
            "deaf": self._deaf,
        }

    def _after(self, work: Callable[[], Any], mean_s: float) -> None:
        asyncio.get_running_loop().call_later(self._rng.expovariate(1 / mean_s), work)

    def _up(self) -> list[SimulatedNode]:
        return [node for node in self._sim.nodes.values() if node.up]

    # Addresses

    def _swap_addresses(self) -> bool:
        """Let two nodes be started again at each other's addresses, one after the other."""
        nodes = self._up()
        if len(nodes) < 2 or self._sim.lost:
            return False  # who recovers etcd has to find the nodes where their map has them
        one, other = self._rng.sample(nodes, 2)
        for node in (one, other):
            node.kill()
        one.address, other.address = other.address, one.address
        self._after(one.start, 2.0)
        self._after(other.start, 6.0)
        return True

    def _take_address(self) -> bool:
        """Start a node at the address of one that is up, or died just now; it is put right after a while."""
        nodes = self._up()
        if len(nodes) < 2 or self._sim.lost:
            return False
        one, other = self._rng.sample(nodes, 2)
        own, one.address = one.address, other.address
        one.kill()
        if self._rng.random() < 0.5:
            other.kill()
            self._after(other.start, 8.0)

        def put_right() -> None:
            if one.address == other.address:
                one.address = own
                one.kill()
                one.start()

        one.start()
        self._after(put_right, 8.0)
        return True

    # What peers say

    def _stray_agreement(self) -> bool:
        """Let a node be told of an agreement that nobody came to."""
        nodes = self._up()
        if len(nodes) < 2:
            return False
        one, other = self._rng.sample(nodes, 2)
        life, slot = one.life, other.life.slot if other.life else 0
        assert life is not None
        assert one.process is not None
        version = life.replica.engine.clock.now_ms() - EPOCH_MS << MS_SHIFT

        async def tell() -> None:
            with suppress(KvmetaError):
                await life.peers.agree(slot, DATASET, range(self._sim.partitions), version)

        one.process.start(tell())
        return True

    # etcd

    def _lose(self, snapshot: Snapshot | None) -> bool:
        sim = self._sim
        if sim.lost or sim.twins or not sim.settled():
            return False  # who knows less than was lost goes on from there, and a person must choose
        if snapshot is not None and sim.space.is_as(snapshot):
            return False
        sim.lost, sim.marked = True, False
        sim.space.restore(snapshot)
        if self._rng.random() < 0.4:
            sim.add_node()
        self._after(lambda: sim.operator.start(sim.recover()), 6.0)
        return True

    def _set_back(self) -> bool:
        """Restore etcd from an older snapshot; an operator recovers it after a while."""
        return bool(self._sim.snapshots) and self._lose(self._rng.choice(self._sim.snapshots))

    def _empty(self) -> bool:
        """Empty etcd; an operator recovers it after a while."""
        return self._lose(None)

    def _deaf(self) -> bool:
        """Let some nodes hear nothing from etcd, whom they can still ask nothing."""
        nodes = list(self._sim.nodes)
        some = self._rng.sample(nodes, max(1, len(nodes) - 1))
        cut = {(HOST, name) for name in some}
        fresh = cut - self._sim.network.cut
        self._sim.network.cut |= fresh
        self._after(lambda: self._sim.network.cut.difference_update(fresh), 6.0)
        return bool(fresh)

    # Twins

    def _twin(self) -> bool:
        """Start a copy of a node's data beside it, with etcd or without, where others answer it or do not.

        Nothing else goes wrong meanwhile: while the node itself seems to be dead, its copy would be taken for
        it, started again.
        """
        sim, nodes = self._sim, self._up()
        quiet = not sim.network.cut and sim.network.conditions == Conditions()
        quiet = quiet and not any(each.process and each.process.paused for each in nodes)
        if sim.twins or not nodes or sim.replicas < 3 or not quiet or not sim.settled():
            return False
        node = self._rng.choice(nodes)
        twin = node.copied()
        if twin is None:
            return False
        sim.twins.append(twin)
        sim.addresses.add(twin.address)
        network = sim.network
        cut: set[tuple[str, str]] = set()
        if self._rng.random() < 0.8:
            names = [*sim.nodes, twin.host]
            cut |= {(name, HOST) for name in names} | {(HOST, name) for name in names}
        network.cut |= cut
        lonely: set[tuple[str, str]] = set()
        if self._rng.random() < 0.6:
            lonely |= {(name, twin.host) for name in sim.nodes} | {(twin.host, name) for name in sim.nodes}
            network.cut |= lonely

        def end() -> None:
            if twin not in sim.twins:
                return  # all is healed already
            away = network.cut - cut
            network.cut.difference_update(cut | lonely)
            lives = [each.life for each in (twin, node) if each.up and each.life is not None]
            if len(lives) == 2 and not away and not all(life.parties.fenced for life in lives):
                sim.shared.tell(node.name, "lives twice, and takes part all the same")
            twin.retire()
            sim.addresses.discard(twin.address)
            sim.twins.remove(twin)
            if node.life is not None and node.life.parties.fenced:
                node.kill()
                node.start()

        twin.must_be_refused = not cut or not lonely
        twin.start()
        loop, alone_s = asyncio.get_running_loop(), self._rng.uniform(2.0, 12.0)
        loop.call_later(alone_s, network.cut.difference_update, lonely)
        loop.call_later(alone_s + SEEN_S, end)
        return True

    # Datasets

    def _recreate(self) -> bool:
        """Drop a dataset and make it anew through some node."""
        nodes = self._up()
        if not nodes:
            return False
        life = self._rng.choice(nodes).life
        assert life is not None
        self._sim.operator.start(self._sim.recreated.recreate(life))
        return True
