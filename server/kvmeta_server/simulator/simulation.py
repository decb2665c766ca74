"""A seed's life: a cluster is founded, clients work while things go wrong, all heals, all is compared."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.errors import KvmetaError
from kvmeta.v1 import cluster_pb2 as pb
from kvmeta_server.backend import Named
from kvmeta_server.cluster.cluster_map import ClusterMap, decode
from kvmeta_server.cluster.membership import prefix_of
from kvmeta_server.cluster.operators import Operators
from kvmeta_server.cluster.tables import decode_tables
from kvmeta_server.simulator import mistaking
from kvmeta_server.simulator.authority import KeySpace, Snapshot
from kvmeta_server.simulator.checks import Checks
from kvmeta_server.simulator.faults import SKEW_MS_MAX, Faults, Mix
from kvmeta_server.simulator.history import History, Violation
from kvmeta_server.simulator.loop import Process, SimulatedLoop
from kvmeta_server.simulator.mistaking import Mistakes
from kvmeta_server.simulator.network import Conditions, Network
from kvmeta_server.simulator.node import Repairs, Shared, SimulatedNode
from kvmeta_server.simulator.recreating import Recreated
from kvmeta_server.simulator.workload import Clients

Rows = NDArray[np.uint64]
MAP_KEY, TABLES_KEY, ID_KEY = (f"{prefix_of('sim')}/{key}" for key in ("map", "tables", "id"))
SETTLE_S = 600.0
LOOK_S = 0.3
REPAIR_S = 2.0
COMPARED_S = 30.0
COME_BACK_S = 4.0
ROUNDS = 40
READS = 8
OWN_MIX = Mix()
REAL_EVERY = 20
"""Of so many seeds one runs over the real engine."""


@dataclass(frozen=True)
class Result:
    """What became of a seed. The same seed has the same trace, a hash of all that happened."""

    seed: int
    trace: int
    faults: dict[str, int]
    acknowledged: int
    read: int
    seconds: float
    """Simulated."""
    violation: str = ""
    events: list[str] = field(default_factory=list)


class Simulation:
    """One seed."""

    def __init__(self, seed: int, mix: Mix, *, keep_events: bool = False) -> None:
        rng = random.Random(seed)
        self._seed = seed
        self._rng = rng
        self._keep_events = keep_events
        self.loop = SimulatedLoop()
        self._trace = xxhash.xxh3_64()
        self.events: list[str] = []
        replicas = rng.choice([1, 2, 3, 3, 3, 3, 3, 5])
        self.partitions = rng.choice([4, 8])
        self._nodes_first = replicas + rng.choice([0, 0, 1, 2])
        self._zones = rng.choice([1, 1, 2, 3])
        self._operations = rng.choice([80, 160, 320])
        repairs = Repairs(
            read=rng.random() < 0.75, hints=rng.random() < 0.75, anti_entropy=rng.random() < 0.75
        )
        settings = {
            "replicas": replicas, "write_quorum": replicas // 2 + 1, "partitions": self.partitions,
            "repair_interval_s": rng.choice([4.0, 12.0]) if repairs.anti_entropy else 1e9,
        }  # fmt: skip
        self.replicas = replicas
        self.network = Network(rng)
        self.space = KeySpace(self.loop.time, self._changed)
        self._directory = TemporaryDirectory(dir=_memory()) if not seed % REAL_EVERY else None
        self.history = History()
        self.nodes: dict[str, SimulatedNode] = {}
        self._checks = Checks(self.history, self.nodes, self.partitions)
        self.shared = Shared(
            rng, self.network, self.space, repairs, settings, self.note, self._checks.hinted,
            self._checks.took,
            directory=Path(self._directory.name) if self._directory else None,
            left_out=rng.choice([0, 0, 0.4, 0.8]), purges_at_once=rng.random() < 0.3, lonely=mix.lonely,
        )  # fmt: skip
        self.removed: dict[str, SimulatedNode] = {}
        """Nodes that operators remove, and that will try to come back."""
        self.wiped = ""
        """The one node whose data a seed may lose."""
        self.operator = Process("operator")
        self._known: set[str] = set()
        self._numbers = 0
        keys = _some_keys(rng)
        self.addresses: set[str] = set()
        """Where else clients ask: at copies of nodes."""
        self.clients = Clients(
            rng, self.network, self.history, self._asked, keys,
            reads_settle=repairs.read and replicas != 2, acknowledged=self._checks.acknowledged,
        )  # fmt: skip
        self.snapshots: list[Snapshot] = []
        """What etcd held under earlier maps."""
        self.marked = False
        """Whether etcd, since it lost all else, has this cluster's ID again."""
        self.lost = False
        """Whether etcd has lost what the nodes know."""
        self.twins: list[SimulatedNode] = []
        """Copies of nodes that live beside them."""
        self.recreated = Recreated(rng, self.network, self._asked, keys, self.shared.tell)
        mistakes = Mistakes(self, rng).kinds
        mistaken = set(mix.kinds) & mistakes.keys() or (not mix.kinds and not seed % mistaking.EVERY)
        self.faults = Faults(self, rng, mix, mistakes if mistaken else {})
        self._recreates = (
            bool(self.faults.weights[list(self.faults.kinds).index("recreate")]) if mistaken else False
        )
        self._crowd = mix.crowd

    @property
    def map(self) -> ClusterMap | None:
        """Return the newest map, as etcd has it."""
        return self._checks.map

    def run(self) -> Result:
        """Live through it."""
        violation = ""
        try:
            self.loop.run_until_complete(self.loop.create_task(self._live()))
        except Violation as error:
            violation = str(error)
        except RuntimeError as error:  # the loop's: nothing will ever happen
            violation = str(error)
        violation = violation or self._fault()
        result = Result(
            self._seed, self._trace.intdigest(), self.faults.counts, self.history.acknowledged,
            self.history.read, self.loop.time(), violation, self.events,
        )  # fmt: skip
        self.loop.end()
        if self._directory is not None:
            self._directory.cleanup()
        return result

    async def _live(self) -> None:
        for _ in range(self._nodes_first):
            self.add_node()
        await self._wait(self.settled, "does not come up")
        clients = self._rng.randint(1, 4)
        pause_s = clients * self.faults.last_s / self._operations
        work = [self.clients.process.start(self.clients.run(pause_s)) for _ in range(clients * self._crowd)]
        if self._recreates:
            work += [self.recreated.process.start(self.recreated.run()) for _ in range(2)]
        await self._watched(self.faults.run(), work)
        for task in work:
            task.cancel()
        self._heal()
        await self._wait(self.settled, "does not settle")
        await self._compare()
        await self._read_everything()

    # Members

    def add_node(self) -> None:
        """Let another node join."""
        self._numbers += 1
        name = f"n{self._numbers}"
        node = SimulatedNode(self.shared, name, f"z{self._numbers % self._zones}")
        self.nodes[name] = node
        node.start()

    def may_lose_a_node(self) -> bool:
        """Return whether what one node holds may be lost now: all else is there and in place."""
        return self.replicas > 1 and len(self.nodes) > self.replicas and self.settled()

    async def operate(self, change: pb.Change, name: str, *, again: bool) -> None:
        """Ask some node for a change of members, `again` until it is made."""
        while True:
            up = [node.life for node in self.nodes.values() if node.up]
            life = self._rng.choice(up) if up else None
            if life is not None:
                request = pb.ChangeMembersRequest(change=change, node=name)
                refused = life.membership.refusal
                try:
                    await Operators(life, _as_it_is).change_members(request)
                    if refused:
                        self.shared.tell(life.name, "changed members in an etcd that it does not believe")
                    return
                except KvmetaError as error:
                    self.note("refused", name, str(error))
            if not again:
                return
            await asyncio.sleep(3.0)

    async def recover(self) -> None:
        """Recover etcd from what the nodes remember, again until it is done."""
        while True:
            lives = [node.life for node in self.nodes.values() if node.life is not None and node.up]
            known = None if self.map is None else {member.name for member in self.map.members}
            ours = [life for life in lives if known is None or life.name in known]
            refusing = [life for life in ours if life.membership.refusal]
            believing = len(ours) > len(refusing) and (self.map is None or self._goes_on_in_etcd(self.map))
            if not self.lost or (believing and not refusing):
                self._found_again()
                return
            if refusing:
                try:
                    operators = Operators(self._rng.choice(refusing), _as_it_is)
                    told = await operators.recover(pb.RecoverRequest())
                    if told.reason:
                        told = await operators.recover(pb.RecoverRequest(plan=told.plan))
                        self._found_again()
                        return
                except KvmetaError as error:
                    self.note("not recovered", str(error))
            await asyncio.sleep(3.0)

    def _found_again(self) -> None:
        """Look again at what etcd holds."""
        held = self.space.values.get(MAP_KEY)
        if self.lost and held is not None:
            self.lost = False
            self._changed(MAP_KEY, held.data)
            assert self.map is not None
            for name, node in list(self.nodes.items()):  # those that joined what was there meanwhile
                known = node.map
                if known is not None and not self.map.descends_from(known.epoch, known.digest):
                    self.nodes.pop(name).retire()

    def _goes_on_in_etcd(self, cluster_map: ClusterMap) -> bool:
        """Return whether etcd's map goes on from one."""
        held = self.space.values.get(MAP_KEY)
        there = None if held is None else decode(held.data)
        return there is not None and there.descends_from(cluster_map.epoch, cluster_map.digest)

    def _asked(self) -> list[str]:
        """Return where clients ask."""
        return [*(node.address for node in self.nodes.values()), *sorted(self.addresses)]

    def _changed(self, key: str, data: bytes | None) -> None:
        """Look at each new map: whatever was acknowledged must be seen by every read quorum of it."""
        if key == ID_KEY and data == self.shared.cluster_id.hex().encode():
            self.marked = True
        if key != MAP_KEY or data is None:
            return
        cluster_map = decode(data)
        self.note("map", cluster_map.epoch)
        ours = self.shared.cluster_id
        if ours and ours != cluster_map.cluster_id and self.marked:
            self.shared.tell("etcd", "another cluster is founded where this one was lost")
        if self.lost:
            return  # by who knows nothing of what is lost
        self.shared.cluster_id = cluster_map.cluster_id
        self.snapshots = [*self.snapshots[-7:], self.space.snapshot()]
        self._checks.adopt(cluster_map)
        members = {node.name for node in cluster_map.members}
        self._known |= members
        for name in [name for name in self.nodes if name in self._known and name not in members]:
            self.nodes.pop(name).retire()  # drained
        active = {node.name for node in cluster_map.members if node.state != "removed"}
        for name in [name for name in self.removed if name not in active]:
            come_back = self.removed.pop(name).come_back
            self.loop.call_later(self._rng.expovariate(1 / COME_BACK_S), come_back)
        self._checks.held(self.history.floors)

    def settled(self) -> bool:
        """Return whether all is there and in place, and every node knows it."""
        cluster_map = self.map
        if cluster_map is None or cluster_map.unplaced.any():
            return False
        if {node.name for node in cluster_map.members} != set(self.nodes):
            return False
        if any(node.state != "active" for node in cluster_map.members):
            return False
        for node in self.nodes.values():
            life = node.life
            if not node.up or life is None or life.replica.persisted != cluster_map.epoch:
                return False
            if life.hints.waiting() or life.state.leftover(self.partitions).any():
                return False
            tables = self.space.values.get(TABLES_KEY)
            if tables is None or life.membership.refusal or life.parties.fenced:
                return False
            if life.membership.tables != decode_tables(tables.data):
                return False
        return True

    # The end

    def _heal(self) -> None:
        self.note("heal")
        for twin in self.twins:
            twin.retire()
        self.twins.clear()
        self.addresses.clear()
        self.operator.start(self.recover())
        self.network.cut.clear()
        self.network.conditions = Conditions()
        self.removed.clear()
        free = sorted({node.host for node in self.nodes.values()} - {n.address for n in self.nodes.values()})
        taken: set[str] = set()
        for node in self.nodes.values():
            if node.address in taken:
                node.address = free.pop()
                node.kill()
            taken.add(node.address)
            node.skew_ms = SKEW_MS_MAX  # all clocks agree again, and nothing is stamped ahead of them
            node.syncs_fail = 0.0
            if node.process is not None and node.process.paused:
                node.process.resume()
            fenced = node.life is not None and node.life.parties.fenced
            if fenced or (node.engine is not None and not node.engine.may_write):
                node.kill()
            node.start()
        if self.map is not None:
            for each in self.map.members:
                if each.state == "draining" and each.name in self.nodes:
                    self.operator.start(self.operate(pb.CHANGE_UNDRAIN, each.name, again=True))

    async def _compare(self) -> None:
        """Compare all replicas, as nodes do from time to time, until they are equal."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                for _ in range(ROUNDS):
                    if await self._compared() and self._checks.equal():
                        return
                    await asyncio.sleep(REPAIR_S)
        raise Violation("replicas do not become equal")

    async def _compared(self) -> bool:
        """Let every node compare what it leads; return whether there was nothing to send and none missing."""
        try:
            async with asyncio.timeout(COMPARED_S):  # one that is drained meanwhile never answers
                reports = [await node.life.compare() for node in list(self.nodes.values()) if node.life]
        except (KvmetaError, TimeoutError):
            return False
        return not any(report.skipped or report.rows for report in reports)

    async def _read_everything(self) -> None:
        for _ in range(READS):
            if await self.clients.read_everything():
                return
            await asyncio.sleep(REPAIR_S)  # who counts as gone is asked again only now and then
        raise Violation("all is well, and not all can be read")

    # Time

    async def _wait(self, until: Callable[[], bool], what: str) -> None:
        end = self.loop.time() + SETTLE_S
        while not until():
            if self.loop.time() > end:
                raise Violation(f"the cluster {what}")
            await self._watched(asyncio.sleep(LOOK_S), [])

    async def _watched(self, work: Any, others: list[asyncio.Task[Any]]) -> None:
        """Wait for `work`; what another task raises ends it."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
        for each in [*others, task]:
            if each.done():
                each.result()
        if fault := self._fault():
            raise Violation(fault)

    def _fault(self) -> str:
        if self._checks.violations:
            return self._checks.violations[0]
        error = self.loop.fault()
        if isinstance(error, Violation):
            return str(error)
        told = self.shared.faults or ([] if error is None else traceback.format_exception(error))
        return f"a fault of the program: {''.join(told).strip()}" if told else ""

    def note(self, event: str, *more: Any) -> None:
        """Take an event into the trace."""
        line = f"{self.loop.time():.6f} {event} {' '.join(map(str, more))}"
        self._trace.update(line.encode())
        if self._keep_events:
            self.events.append(line)


def simulate(seed: int, mix: Mix = OWN_MIX, *, keep_events: bool = False) -> Result:
    """Return what becomes of a seed."""
    return Simulation(seed, mix, keep_events=keep_events).run()


async def _as_it_is(dataset: Named) -> str:
    return dataset.name


def _memory() -> str | None:
    """Return where files lie in memory; None where no place is known."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _some_keys(rng: random.Random) -> Rows:
    """Return some mixed IDs, u8[n, 2]: a few, so that clients meet on them."""
    count = rng.choice([8, 16, 32])
    return np.frombuffer(rng.randbytes(16 * count), np.uint64).reshape(count, 2)
