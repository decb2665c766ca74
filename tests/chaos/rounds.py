"""One round: a cluster of five nodes and an etcd, clients, faults in three lanes; then peace, and a verdict.

    start ─ clients write and read ─ faults, each kind at least once ─ heal, settle, repair, compare, read all

A round is named by its seed, which decides faults and operations; the machine decides how they meet.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.workers import Worker
from tests.chaos import history
from tests.chaos.faults import LANES, Fault, Scene
from tests.chaos.history import Kind, Told
from tests.chaos.machines import EtcdMachine, Machines, NodeMachine
from tests.chaos.network import Network
from tests.chaos.operators import Operator
from tests.chaos.workload import Client

NODES = 5
CLIENTS = 2
THREADS = 3
SETTLE_S = 300.0
HELD_S = 1.5, 5.0
"""How long a fault lasts: drawn between these."""
PASSES_MAX = 5
"""How often a fault that is not felt is tried again."""
AFTER_S = 15.0
"""How long after a fault nodes may still disagree on who is alive."""
Say = Callable[[str], None]


@dataclass
class Result:
    """What a round came to; `wrong` is empty where all was as promised."""

    seed: int
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    felt: dict[str, int] = field(default_factory=dict)
    """How many of the faults met anything at all: packets, a process, a reader of the clock."""
    operations: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    ids: int = 0
    twins: int = 0
    too_old: int = 0
    """Fast reads that would be violations, were they quorum reads: the judge's control."""
    longest_wait_s: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Round:
    """A round in `directory`, which keeps logs and history. `plant`: a fault in the nodes' own code."""

    def __init__(
        self,
        seed: int,
        seconds: float,
        directory: Path,
        say: Say,
        *,
        plant: str = "",
        held_s: tuple[float, float] = HELD_S,
    ) -> None:
        self._random = Random(seed)
        self._plant, self._held_s = plant, held_s
        self._seconds = seconds
        self._directory = directory
        self._say = say
        self._result = Result(seed)
        self._faults: list[tuple[int, int]] = []  # when each began and ended
        self._calm = threading.Event()
        directory.mkdir(parents=True, exist_ok=True)

    def run(self) -> Result:
        """Run it."""
        self._started = time.monotonic()
        with self._scene() as scene, ExitStack() as stack:
            clients = [
                stack.enter_context(
                    Worker(
                        Client, scene.machines.target, i, THREADS, self._result.seed, self._started,
                        before=scene.clients.command(),
                    )
                )
                for i in range(CLIENTS)
            ]  # fmt: skip
            for client in clients:
                client.call("start")
            self._disturb(scene)
            self._result.wrong += [
                f"{name} was brought about {self._result.faults[name]} times and never felt"
                for name, felt in self._result.felt.items()
                if not felt
            ]
            for client in clients:
                client.call("stop")
            stopped = time.monotonic_ns()
            self._settle(scene)
            if unread := clients[0].call("read_all", SETTLE_S):
                self._result.wrong.append(f"{unread} IDs are not answered at the end")
            told = [client.call("result") for client in clients]
        rows = np.concatenate([rows for rows, *_ in told])
        np.save(self._directory / "history.npy", rows)
        self._result.errors = dict(sum((errors for _, errors, _ in told), Counter()))
        self._result.wrong += [fault for *_, faults in told for fault in faults]
        self._count(rows, stopped)
        self._judge(rows)
        self._result.seconds = time.monotonic() - self._started
        return self._result

    @contextmanager
    def _scene(self) -> Iterator[Scene]:
        with Network() as network:
            etcd = EtcdMachine(network.add("etcd"), self._directory)
            names = [f"n{i + 1}" for i in range(NODES)]
            nodes = [
                NodeMachine(name, network.add(name), self._directory, etcd.url, self._plant) for name in names
            ]
            machines, clients = Machines(etcd, nodes), network.add("clients")
            try:
                machines.start()
                with Worker(Operator, machines.target, before=clients.command()) as operators:
                    scene = Scene(network, machines, clients, operators)
                    scene.joined()
                    self._tell("five nodes are up")
                    yield scene
            finally:
                machines.kill()

    # Faults

    def _disturb(self, scene: Scene) -> None:
        seeds = {name: self._random.random() for name in LANES}
        lanes = [
            threading.Thread(target=self._lane, args=(scene, kinds, Random(seeds[name])), daemon=True)
            for name, kinds in LANES.items()
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()

    def _lane(self, scene: Scene, kinds: tuple[Fault, ...], random: Random) -> None:
        """Bring about every kind until it was felt, then go on until the time is up."""
        passes = 0
        while open_ := self._open(kinds, passes):
            for kind in random.sample(open_, len(open_)):
                while scene.peace.is_set() and kinds is not LANES["members"]:
                    time.sleep(0.1)
                if self._calm.wait(random.uniform(0.5, 2.0)) or kind not in self._open(kinds, passes):
                    continue
                try:
                    self._bring_about(scene, kind, random)
                except Exception:  # noqa: BLE001 - told in the result; the other lanes end soon
                    self._result.wrong.append(f"{kind.__name__}: {traceback.format_exc()}")
                    self._calm.set()
            passes += 1

    def _open(self, kinds: tuple[Fault, ...], passes: int) -> list[Fault]:
        """Return what is still to be brought about: everything, or after the time what was not felt."""
        if self._calm.is_set():
            return []
        if not self._over():
            return list(kinds)
        unfelt = [kind for kind in kinds if not self._result.felt.get(kind.__name__)]
        return unfelt if passes < PASSES_MAX else []

    def _bring_about(self, scene: Scene, kind: Fault, random: Random) -> None:
        name, faults, felt = kind.__name__, self._result.faults, self._result.felt
        began = time.monotonic_ns()
        with kind(scene, random) as happening:
            self._tell(happening.text)
            time.sleep(random.uniform(*self._held_s))
            felt[name] = felt.get(name, 0) + bool(happening.felt())
            faults[name] = faults.get(name, 0) + 1
        self._faults.append((began, time.monotonic_ns()))

    def _over(self) -> bool:
        return time.monotonic() - self._started > self._seconds

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._started:6.1f} s  {text}")

    # Peace

    def _settle(self, scene: Scene) -> None:
        """Wait until nothing moves or waits, compare all replicas, and see that they are equal."""
        scene.network.heal()
        self._tell("all is healed")
        told = scene.operators.call("settled", SETTLE_S)
        if told:
            self._result.wrong.append(f"the cluster does not settle: {told}")
            return
        for _ in range(3):  # the cut of a comparison lies ten seconds back
            scene.insist("repair")
            if not (differing := scene.operators.call("differing")):
                break
            time.sleep(5.0)
        if differing:
            self._result.wrong.append(f"{differing} partitions have replicas that differ")
        self._tell(f"settled; {differing} partitions differ")

    # The verdict

    def _count(self, rows: NDArray[Any], stopped: int) -> None:
        """Count operations, and how long nothing succeeded while faults went on."""
        result = self._result
        result.ids = len(np.unique(rows["id"]))
        for kind in Kind:
            own = rows[rows["kind"] == kind]
            result.operations[kind.name.lower()] = {
                told.name.lower(): int((own["told"] == told).sum()) for told in Told
            }
        writes = rows["kind"] <= Kind.RELOCATE
        for name, which in (("writes", writes), ("reads", ~writes)):
            answered = which & (rows["told"] != Told.UNKNOWN) & (rows["began"] < stopped)
            ends = np.unique(rows["ended"][answered])
            result.longest_wait_s[name] = float(np.diff(ends).max(initial=0)) / 1e9

    def _judge(self, rows: NDArray[Any]) -> None:
        result = self._result
        verdict = history.check(rows)
        for violation in verdict.violations[:20]:
            lines = "\n    ".join(history.explain(rows, violation.id))
            result.wrong.append(f"{violation.rule}, ID {violation.id}: {violation.text}\n    {lines}")
        if len(verdict.violations) > 20:
            result.wrong.append(f"and {len(verdict.violations) - 20} more")
        control = rows.copy()
        control["kind"][rows["kind"] == Kind.FAST] = Kind.LOOKUP
        result.too_old = len(history.check(control).violations) - len(verdict.violations)
        result.twins = len(verdict.twins)
        for twins in verdict.twins:
            if not any(
                began < twins.ended and twins.began < ended + AFTER_S * 1e9 for began, ended in self._faults
            ):
                result.wrong.append(
                    f"two writes succeeded of which only one may, and no fault was near: {twins}"
                )
