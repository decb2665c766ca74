"""What goes wrong in a simulation: each seed has a mix of its own (swarm testing, Groce et al., 2012).

Whoever looks for one thing names the `kinds` of faults that lead there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from kvmeta.errors import KvmetaError
from kvmeta.v1 import cluster_pb2 as pb
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.simulator.authority import HOST, KeySpace
from kvmeta_server.simulator.loop import Process
from kvmeta_server.simulator.network import Conditions, Network
from kvmeta_server.simulator.node import SimulatedNode

SKEW_MS_MAX = 90_000
FEW_KINDS_SHARE = 0.4


class Mix(NamedTuple):
    """Faults that are asked for: how many, of which kinds (none named: a seed's own choice), how often."""

    faults: int = 25
    kinds: tuple[str, ...] = ()
    pause_s: float | None = None
    """Between two faults, on average; None: a seed's own choice."""
    lonely: int = 0
    """From how many owners more than they can do without writes are kept: many are not acknowledged."""
    crowd: int = 1
    """How many times as many clients there are, all at the same few IDs."""


class Scene(Protocol):
    """Where faults happen: a simulation."""

    nodes: dict[str, SimulatedNode]
    removed: dict[str, SimulatedNode]
    network: Network
    space: KeySpace
    operator: Process
    replicas: int
    wiped: str
    twins: list[SimulatedNode]

    @property
    def map(self) -> ClusterMap | None:
        """Return the newest map."""

    def note(self, event: str, *more: Any) -> None:
        """Take an event into the trace."""

    def add_node(self) -> None:
        """Let another node join."""

    def may_lose_a_node(self) -> bool:
        """Return whether what one node holds may be lost now."""

    async def operate(self, change: pb.Change, name: str, *, again: bool) -> None:
        """Ask some node for a change of members."""


class Faults:
    """Makes faults, one after another; each ends by itself after a while, or by another."""

    def __init__(
        self, scene: Scene, rng: random.Random, mix: Mix, more: Mapping[str, Callable[[], bool]]
    ) -> None:
        self._sim = scene
        self._rng = rng
        self._count = mix.faults
        self._pause_s = rng.choice([0.2, 0.5, 1.0]) if mix.pause_s is None else mix.pause_s
        self.last_s = self._count * self._pause_s
        """For how long they come, about."""
        self.made = 0
        self.kinds: dict[str, Callable[[], bool]] = {
            "crash": self._crash,
            "restart": self._restart,
            "pause": self._pause,
            "isolate": self._isolate,
            "one way": self._one_way,
            "split": self._split,
            "loss": self._loss,
            "doubling": self._doubling,
            "lateness": self._lateness,
            "skew": self._skew,
            "bad disk": self._bad_disk,
            "wipe": self._wipe,
            "join": self._join,
            "drain": self._drain,
            "undrain": self._undrain,
            "remove": self._remove,
            "no etcd": self._no_etcd,
            "etcd out of reach": self._etcd_out_of_reach,
            "compaction": self._compaction,
            "purge": self._purge,
            **more,
        }
        weights = [rng.choice([0, 1, 1, 3, 8]) for _ in self.kinds]
        if rng.random() < FEW_KINDS_SHARE:  # some meet seldom in a mix of all
            few = rng.sample(range(len(weights)), rng.randint(3, 6))
            weights = [3 if i in few else 0 for i in range(len(weights))]
        if mix.kinds:
            weights = [1 if kind in mix.kinds else 0 for kind in self.kinds]
        self.weights: list[float] = [*weights] if any(weights) else [1.0] * len(weights)
        self.counts = dict.fromkeys(self.kinds, 0)

    async def run(self) -> None:
        """Make them."""
        names = list(self.kinds)
        while self.made < self._count:
            await asyncio.sleep(self._rng.expovariate(1 / self._pause_s))
            if self._sim.twins:
                continue  # see Mistakes
            for name in self._rng.choices(names, self.weights, k=len(names)):
                if self.kinds[name]():  # else it cannot happen now: the next one
                    self.made += 1
                    self.counts[name] += 1
                    self._sim.note("fault", name)
                    break
            else:
                self.weights = [weight + 0.1 for weight in self.weights]  # a mix of what cannot happen

    def _after(self, work: Callable[[], None], mean_s: float) -> None:
        asyncio.get_running_loop().call_later(self._rng.expovariate(1 / mean_s), work)

    def _some_node(self) -> SimulatedNode | None:
        nodes = [node for node in self._sim.nodes.values() if node.up]
        return self._rng.choice(nodes) if nodes else None

    # Processes

    def _crash(self) -> bool:
        node = self._some_node()
        if node is None:
            return False
        node.kill()
        self._after(node.start, 6.0)
        return True

    def _restart(self) -> bool:
        node = self._some_node()
        if node is None:
            return False
        node.kill()
        node.start()
        return True

    def _pause(self) -> bool:
        node = self._some_node()
        process = node.process if node else None
        if process is None or process.paused:
            return False
        process.pause()
        self._after(process.resume, 4.0)
        return True

    # The network

    def _cut(self, pairs: set[tuple[str, str]], mean_s: float = 5.0) -> bool:
        network = self._sim.network
        fresh = pairs - network.cut
        network.cut |= fresh
        self._after(lambda: network.cut.difference_update(fresh), mean_s)
        return bool(fresh)

    def _isolate(self) -> bool:
        name = self._rng.choice(list(self._sim.nodes))
        others = [each for each in self._sim.nodes if each != name]
        return self._cut({(name, each) for each in others} | {(each, name) for each in others})

    def _one_way(self) -> bool:
        source, target = self._rng.sample([*self._sim.nodes, HOST], 2)
        return self._cut({(source, target)})

    def _split(self) -> bool:
        names = list(self._sim.nodes)
        self._rng.shuffle(names)
        one, other = names[: len(names) // 2], names[len(names) // 2 :]
        return self._cut({(a, b) for a in one for b in other} | {(b, a) for a in one for b in other})

    def _bad_network(self, conditions: Conditions) -> bool:
        self._sim.network.conditions = conditions
        self._after(lambda: setattr(self._sim.network, "conditions", Conditions()), 6.0)
        return True

    def _loss(self) -> bool:
        return self._bad_network(Conditions(lost=self._rng.choice([0.02, 0.1, 0.3]), late=0.1))

    def _doubling(self) -> bool:
        return self._bad_network(Conditions(doubled=0.3, late=0.2))

    def _lateness(self) -> bool:
        return self._bad_network(Conditions(late=self._rng.choice([0.1, 0.4])))

    def _no_etcd(self) -> bool:
        names = [*self._sim.nodes, "client"]
        return self._cut({(each, HOST) for each in names} | {(HOST, each) for each in names}, 8.0)

    def _etcd_out_of_reach(self) -> bool:
        names = list(self._sim.nodes)
        some = self._rng.sample(names, self._rng.randint(1, max(1, len(names) // 2)))
        return self._cut({(name, HOST) for name in some} | {(HOST, name) for name in some}, 8.0)

    def _compaction(self) -> bool:
        self._sim.space.compact()
        return True

    # Clocks and disks

    def _skew(self) -> bool:
        node = self._sim.nodes[self._rng.choice(list(self._sim.nodes))]
        node.skew_ms = self._rng.choice([0, self._rng.randint(-SKEW_MS_MAX, SKEW_MS_MAX), 2000, -2000])
        return True

    def _bad_disk(self) -> bool:
        node = self._some_node()
        if node is None:
            return False
        node.syncs_fail = self._rng.choice([0.05, 0.3, 1.0])

        def mend() -> None:  # its engine takes no writes before it is opened again
            if node.syncs_fail:  # else it is healed already
                node.syncs_fail = 0.0
                node.kill()
                node.start()

        self._after(mend, 4.0)
        return True

    def _purge(self) -> bool:
        """Let a node's merges drop the tombstones that may go."""
        node = self._some_node()
        if node is None or node.engine is None or not node.engine.may_write:
            return False
        with suppress(KvmetaError):
            node.engine.background.compact()
        return True

    # Members

    def _wipe(self) -> bool:
        """Lose a node's data for good; an operator removes it, and another joins."""
        node = self._some_node()
        if node is None or not self._lose(node):
            return False
        self._sim.add_node()
        return True

    def _join(self) -> bool:
        if len(self._sim.nodes) >= 7:
            return False
        self._sim.add_node()
        return True

    def _drain(self) -> bool:
        if len(self._sim.nodes) <= self._sim.replicas:
            return False
        return self._operate(pb.CHANGE_DRAIN, self._rng.choice(list(self._sim.nodes)))

    def _undrain(self) -> bool:
        going = (
            [node.name for node in self._sim.map.members if node.state == "draining"] if self._sim.map else []
        )
        return bool(going) and self._operate(pb.CHANGE_UNDRAIN, self._rng.choice(going))

    def _remove(self) -> bool:
        """Remove a node that died and has its data; where it comes back later, it is refused."""
        node = self._some_node()
        if node is None or not self._lose(node):
            return False
        self._sim.removed[node.name] = node
        return True

    def _lose(self, node: SimulatedNode) -> bool:
        """Take a node out for good, where the others have all that it has; an operator removes it."""
        sim = self._sim
        if sim.wiped or not sim.may_lose_a_node():
            return False
        sim.wiped = node.name
        sim.nodes.pop(node.name).retire()
        return self._operate(pb.CHANGE_REMOVE, node.name, again=True)

    def _operate(self, change: pb.Change, name: str, *, again: bool = False) -> bool:
        self._sim.operator.start(self._sim.operate(change, name, again=again))
        return True
