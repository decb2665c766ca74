"""What goes wrong: a fault begins, tells what it is and whether it is felt, and ends with its block.

Three lanes at once, a fault of each at most: the network, the processes with their clocks, and the members.
So nodes join and leave while others are cut off, and both while a third one stands still.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from random import Random
from signal import SIGCONT, SIGSTOP
from typing import NamedTuple

from bench.workers import Worker
from tests.chaos.machines import MAX_SKEW_S, Machines, NodeMachine
from tests.chaos.network import Host, Network

MOVED_S = 90.0
"""How long members may take to change amid faults; after that no other fault begins until they have."""
PEACE_S = 180.0


@dataclass
class Scene:
    """Where faults happen. `operators` asks the cluster how it is, and changes it, from the clients' host."""

    network: Network
    machines: Machines
    clients: Host
    operators: Worker
    peace: threading.Event = field(default_factory=threading.Event)
    """Set while no other fault shall begin."""

    def insist(self, *change: object) -> None:
        """Let the operator make a change: other faults may keep it from that for a while."""
        self._until("changed", change)

    def expect(self, question: str, *arguments: object) -> None:
        """Wait for what the operator is asked to wait for."""
        self._until(question, *arguments)

    def joined(self) -> None:
        """Wait until all nodes there are, and no others, are members, and nothing moves."""
        self.expect("joined", [machine.node for machine in self.machines.nodes])

    def _until(self, question: str, *arguments: object) -> None:
        """Wait amid faults for a while, then in peace: only there must it come to an end."""
        told = self.operators.call(question, *arguments, MOVED_S)
        if told:
            self.peace.set()
            try:
                told = self.operators.call(question, *arguments, PEACE_S)
            finally:
                self.peace.clear()
        if told:
            raise AssertionError(f"{question}{arguments}: {told}")


class Happening(NamedTuple):
    """A fault that has begun. `felt` tells how often anything met it so far: 0 is a fault in name alone."""

    text: str
    felt: Callable[[], int]


Fault = Callable[[Scene, Random], AbstractContextManager[Happening]]


# The network


@contextmanager
def _healed(scene: Scene) -> Iterator[None]:
    try:
        yield
    finally:
        scene.network.heal()


@contextmanager
def split(scene: Scene, random: Random) -> Iterator[Happening]:
    """Part two nodes from three; etcd is with the ones or the others, clients reach all."""
    order = random.sample(scene.machines.nodes, 5)
    few, many = [m.host for m in order[:2]], [m.host for m in order[2:]]
    random.choice([few, many]).append(scene.machines.etcd.host)
    with _healed(scene):
        for host in few:
            host.drop(many)
        for host in many:
            host.drop(few)
        yield Happening(f"{order[0].name} and {order[1].name} parted from the others", scene.network.met)


@contextmanager
def cut_off(scene: Scene, random: Random) -> Iterator[Happening]:
    """Part one node from all nodes and etcd, and from clients or not."""
    machine = random.choice(scene.machines.nodes)
    others = [host for host in scene.machines.hosts if host is not machine.host]
    others += [scene.clients] * random.randrange(2)
    with _healed(scene):
        machine.host.drop(others)
        for host in others:
            host.drop([machine.host])
        yield Happening(f"{machine.name} cut off", scene.network.met)


@contextmanager
def part_all(scene: Scene, _: Random) -> Iterator[Happening]:
    """Part every node from every other one and from etcd: clients reach all, and none has a quorum."""
    with _healed(scene):
        for host in scene.machines.hosts:
            host.drop([other for other in scene.machines.hosts if other is not host])
        yield Happening("all parted from each other", scene.network.met)


@contextmanager
def part_pairs(scene: Scene, random: Random) -> Iterator[Happening]:
    """Part two pairs: each of them reaches all others."""
    a, b, c, d, _ = random.sample(scene.machines.nodes, 5)
    with _healed(scene):
        for one, other in ((a, b), (c, d)):
            one.host.drop([other.host])
            other.host.drop([one.host])
        yield Happening(f"{a.name} parted from {b.name}, {c.name} from {d.name}", scene.network.met)


@contextmanager
def one_way(scene: Scene, random: Random) -> Iterator[Happening]:
    """Let a node send and not receive, or receive and not send, as far as other nodes and etcd go."""
    machine = random.choice(scene.machines.nodes)
    others = [host for host in scene.machines.hosts if host is not machine.host]
    deaf = random.random() < 0.5
    with _healed(scene):
        if deaf:
            machine.host.drop(others)
        else:
            for host in others:
                host.drop([machine.host])
        yield Happening(f"{machine.name} {'receives' if deaf else 'sends'} nothing", scene.network.met)


@contextmanager
def resets(scene: Scene, random: Random) -> Iterator[Happening]:
    """Reset every connection to two nodes, those of clients, too."""
    chosen = random.sample(scene.machines.nodes, 2)
    with _healed(scene):
        for machine in chosen:
            machine.host.reset([*(h for h in scene.machines.hosts if h is not machine.host), scene.clients])
        yield Happening(f"connections to {chosen[0].name} and {chosen[1].name} reset", scene.network.met)


@contextmanager
def loss(scene: Scene, random: Random) -> Iterator[Happening]:
    """Lose packets everywhere."""
    share = random.uniform(0.02, 0.2)
    with _healed(scene):
        for host in scene.machines.hosts:
            host.lose([other for other in scene.machines.hosts if other is not host], share)
        yield Happening(f"{share:.0%} of all packets lost", scene.network.met)


@contextmanager
def slow(scene: Scene, random: Random) -> Iterator[Happening]:
    """Let two nodes send a little at a time."""
    chosen, kbit_s = random.sample(scene.machines.nodes, 2), random.choice([8, 16, 32])
    for machine in chosen:
        machine.host.slow(kbit_s)
    try:
        yield Happening(
            f"{chosen[0].name} and {chosen[1].name} send {kbit_s} kbit/s",
            lambda: sum(machine.host.held_up() for machine in chosen),
        )
    finally:
        for machine in chosen:
            machine.host.quicken()


# Processes and clocks


@contextmanager
def stand_still(scene: Scene, random: Random) -> Iterator[Happening]:
    """Stop a node's process without ending it."""
    with scene.machines.claim(random) as machine:
        machine.send(SIGSTOP)
        try:
            yield Happening(f"{machine.name} stands still", lambda: machine.standing_still)
        finally:
            machine.send(SIGCONT)


@contextmanager
def kill(scene: Scene, random: Random) -> Iterator[Happening]:
    """Kill a node and start it again."""
    with scene.machines.claim(random) as machine:
        machine.kill()
        try:
            yield Happening(f"{machine.name} killed", lambda: not machine.running)
        finally:
            machine.start()


@contextmanager
def kill_two(scene: Scene, random: Random) -> Iterator[Happening]:
    """Kill two nodes, and start them again one after the other."""
    with scene.machines.claim(random) as one, scene.machines.claim(random) as other:
        one.kill()
        other.kill()
        try:
            yield Happening(
                f"{one.name} and {other.name} killed", lambda: not one.running and not other.running
            )
        finally:
            one.start()
            other.start()


@contextmanager
def clocks_off(scene: Scene, random: Random) -> Iterator[Happening]:
    """Set clocks, one ahead and one back, by less than what is allowed."""
    ahead, back = random.sample(scene.machines.nodes, 2)
    by_s = random.randrange(2, MAX_SKEW_S // 2)
    with _clock(ahead, by_s), _clock(back, -by_s):
        yield Happening(
            f"{ahead.name}'s clock {by_s} s ahead, {back.name}'s back",
            lambda: ahead.sees_clock(by_s) and back.sees_clock(-by_s),
        )


@contextmanager
def clock_far_off(scene: Scene, random: Random) -> Iterator[Happening]:
    """Set a clock further ahead than what is allowed."""
    machine = random.choice(scene.machines.nodes)
    by_s = MAX_SKEW_S + random.randrange(5, 15)
    with _clock(machine, by_s):
        yield Happening(f"{machine.name}'s clock {by_s} s ahead", lambda: machine.sees_clock(by_s))


@contextmanager
def _clock(machine: NodeMachine, ahead_s: int) -> Iterator[None]:
    machine.set_clock(ahead_s)
    try:
        yield
    finally:
        machine.set_clock(0)


@contextmanager
def etcd_stands_still(scene: Scene, _: Random) -> Iterator[Happening]:
    """Stop etcd without ending it."""
    scene.machines.etcd.send(SIGSTOP)
    try:
        yield Happening("etcd stands still", lambda: scene.machines.etcd.standing_still)
    finally:
        scene.machines.etcd.send(SIGCONT)


@contextmanager
def etcd_killed(scene: Scene, _: Random) -> Iterator[Happening]:
    """Kill etcd and start it again."""
    scene.machines.etcd.kill()
    try:
        yield Happening("etcd killed", lambda: not scene.machines.etcd.running)
    finally:
        scene.machines.etcd.start()


@contextmanager
def compaction(scene: Scene, random: Random) -> Iterator[Happening]:
    """Let a node drop the tombstones it may drop: no fault, but what would show one of tombstones."""
    with scene.machines.claim(random) as machine:
        line = [sys.executable, "-m", "kvmeta", "compact", "--store", f"kvmeta://{machine.address}"]
        with subprocess.Popen(
            scene.clients.command(*line), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as compacting:
            yield Happening(f"{machine.name} compacts", lambda: compacting.wait() == 0)


# Members


def _carried_out(text: str) -> Happening:
    """Return what is felt for sure: what the map is to be by then is waited for below, or raises."""
    return Happening(text, lambda: True)


@contextmanager
def drain(scene: Scene, random: Random) -> Iterator[Happening]:
    """Drain a node, which joins again as a new one."""
    with scene.machines.claim(random) as machine:
        yield _carried_out(f"{machine.node} drained")
        scene.insist("drain", machine.node)
        scene.expect("left", machine.node)
        machine.stop()
        machine.lose_data()
        machine.start()
        scene.joined()


@contextmanager
def wipe(scene: Scene, random: Random) -> Iterator[Happening]:
    """Let a node die and lose its data; it is removed and joins as a new one."""
    with scene.machines.claim(random) as machine:
        gone = machine.node
        machine.kill()
        machine.lose_data()
        yield _carried_out(f"{gone} lost its data")
        scene.insist("remove", gone)
        machine.start()
        scene.joined()


@contextmanager
def remove(scene: Scene, random: Random) -> Iterator[Happening]:
    """Let a node die and remove it; it must not come back with its old data, and joins as a new one."""
    with scene.machines.claim(random) as machine:
        machine.kill()
        yield _carried_out(f"{machine.node} removed")
        scene.insist("remove", machine.node)
        scene.expect("left", machine.node)
        machine.refused("was taken out")
        machine.lose_data()
        machine.start()
        scene.joined()


@contextmanager
def weigh(scene: Scene, random: Random) -> Iterator[Happening]:
    """Change a node's share, and then again."""
    machine, weight = random.choice(scene.machines.nodes), random.choice([0.5, 2.0])
    yield _carried_out(f"{machine.node} weighs {weight:g}")
    for each in (weight, 1.0):
        scene.insist("set_weight", machine.node, each)
        scene.joined()


LANES: dict[str, tuple[Fault, ...]] = {
    "network": (split, cut_off, part_all, part_pairs, one_way, resets, loss, slow),
    "processes": (
        stand_still, kill, kill_two, clocks_off, clock_far_off, etcd_stands_still, etcd_killed, compaction,
    ),
    "members": (drain, wipe, remove, weigh),
}  # fmt: skip
