"""A seed's life: a cluster is founded, clients work while things go wrong, all heals, all is compared."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, LOW, VERSION
from kvmeta.errors import KvmetaError
from kvmeta.testing.authority import KeySpace
from kvmeta.testing.faults import SKEW_MS_MAX, Faults, Mix
from kvmeta.testing.history import Floor, History, Key, Sent, Violation
from kvmeta.testing.loop import Process, SimulatedLoop
from kvmeta.testing.network import Conditions, Network
from kvmeta.testing.node import Repairs, Shared, SimulatedNode
from kvmeta.testing.workload import DATASET, Clients
from kvmeta.v1 import cluster_pb2 as pb
from kvmeta.version import TOMBSTONE
from kvmeta_server.cluster.cluster_map import COPYING, STABLE, SWITCHED, ClusterMap, decode
from kvmeta_server.cluster.hints import Hint
from kvmeta_server.cluster.member import Member
from kvmeta_server.cluster.membership import prefix_of
from kvmeta_server.cluster.operators import Operators
from kvmeta_server.cluster.placement import NOBODY

Rows = NDArray[np.uint64]
MAP_KEY = f"{prefix_of('sim')}/map"
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
        self.shared = Shared(
            rng, self.network, self.space, repairs, settings, self.note, self._check_hinted,
            directory=Path(self._directory.name) if self._directory else None,
            left_out=rng.choice([0, 0, 0.4, 0.8]), purges_at_once=rng.random() < 0.3, lonely=mix.lonely,
        )  # fmt: skip
        self.history = History()
        self.nodes: dict[str, SimulatedNode] = {}
        self.removed: dict[str, SimulatedNode] = {}
        """Nodes that operators remove, and that will try to come back."""
        self.wiped = ""
        """The one node whose data a seed may lose."""
        self.operator = Process("operator")
        self.map: ClusterMap | None = None
        self._known: set[str] = set()
        self._violations: list[str] = []
        self._numbers = 0
        self.clients = Clients(
            rng, self.network, self.history, lambda: list(self.nodes), _some_keys(rng),
            reads_settle=repairs.read and replicas != 2, acknowledged=self._check_acknowledged,
        )  # fmt: skip
        self.faults = Faults(self, rng, mix)

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
        await self._wait(self._settled, "does not come up")
        clients = self._rng.randint(1, 4)
        pause_s = clients * self.faults.last_s / self._operations
        work = [self.clients.process.start(self.clients.run(pause_s)) for _ in range(clients)]
        await self._watched(self.faults.run(), work)
        for task in work:
            task.cancel()
        self._heal()
        await self._wait(self._settled, "does not settle")
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
        return self.replicas > 1 and len(self.nodes) > self.replicas and self._settled()

    async def operate(self, change: pb.Change, name: str, *, again: bool) -> None:
        """Ask some node for a change of members, `again` until it is made."""
        while True:
            up = [node.member for node in self.nodes.values() if node.up]
            member = self._rng.choice(up) if up else None
            if member is not None:
                request = pb.ChangeMembersRequest(change=change, node=name)
                try:
                    await Operators(member, str).change_members(request)
                    return
                except KvmetaError as error:
                    self.note("refused", name, str(error))
            if not again:
                return
            await asyncio.sleep(3.0)

    def _changed(self, key: str, data: bytes | None) -> None:
        """Look at each new map: whatever was acknowledged must be seen by every read quorum of it."""
        if key != MAP_KEY or data is None:
            return
        before, self.map = self.map, decode(data)
        self.note("map", self.map.epoch)
        if before is not None:
            self._check_step(before, self.map)
        members = {node.name for node in self.map.nodes}
        self._known |= members
        for name in [name for name in self.nodes if name in self._known and name not in members]:
            self.nodes.pop(name).retire()  # drained
        active = {node.name for node in self.map.nodes if node.state != "removed"}
        for name in [name for name in self.removed if name not in active]:
            come_back = self.removed.pop(name).come_back
            self.loop.call_later(self._rng.expovariate(1 / COME_BACK_S), come_back)
        self._check_held(self.history.floors)

    def _settled(self) -> bool:
        cluster_map = self.map
        if cluster_map is None or cluster_map.unplaced.any():
            return False
        if {node.name for node in cluster_map.nodes} != set(self.nodes):
            return False
        if any(node.state != "active" for node in cluster_map.nodes):
            return False
        for node in self.nodes.values():
            member = node.member
            if not node.up or member is None or member.replica.persisted != cluster_map.epoch:
                return False
            if member.hints.waiting() or member.state.leftover(self.partitions).any():
                return False
        return True

    # Checks

    def _check_acknowledged(self, member: Member, rows: Rows, sent: Sequence[Sent], last: int) -> None:
        """Look at rows as they are acknowledged, by their node's map and by the newest.

        `last`: the version of the write's last attempt.
        """
        now = member.membership.current
        for partition, each in zip(now.partition_of(rows[:, HIGH]).tolist(), sent, strict=True):
            if each.version == last and now.changed[partition] > each.epoch:  # earlier attempts were in time
                self._violations.append(
                    f"partition {partition} is acknowledged as of epoch {each.epoch}, and the node knows "
                    f"that it changed at {int(now.changed[partition])}"
                )
        keys = (row[: LOW + 1].tobytes() for row in rows)
        self._check_held({key: Floor(each.version) for key, each in zip(keys, sent, strict=True)})

    def _check_held(self, floors: dict[Key, Floor]) -> None:
        """Note where a read quorum of the newest map could miss a floor."""
        cluster_map = self.map
        if cluster_map is None or not floors:
            return
        mixed = np.frombuffer(b"".join(floors), np.uint64).reshape(-1, 2)
        partitions = cluster_map.partition_of(mixed[:, HIGH])
        readers = cluster_map.readers[partitions]
        holders, without = np.zeros(len(mixed), np.int64), np.zeros(len(mixed), np.int64)
        stale = np.zeros(len(mixed), np.bool_)
        unknown = np.zeros(len(mixed), np.bool_)
        least = np.array([floor.version for floor in floors.values()], np.uint64)
        absent = np.array(
            [each.absent or self.history.may_be_gone(key, each.version) for key, each in floors.items()]
        )
        for each in cluster_map.nodes:
            reads = (readers == each.slot).any(axis=1)
            node = self.nodes.get(each.name)
            if node is None or node.engine is None:
                unknown |= reads  # it lost its data: what is left must do
                continue
            held = node.engine.tree(DATASET).held(mixed).versions
            alive = (held != 0) & (held & np.uint64(TOMBSTONE) == 0)
            holders += reads & (held >= least)
            without += reads & (held < least) & ~alive
            stale |= reads & (held < least) & alive
        holders += np.where(absent & ~stale, without, 0)  # nothing left that a dropped tombstone must hide
        count = (readers != NOBODY).sum(axis=1)
        missed = (holders < count - cluster_map.read_quorum[partitions] + 1) & ~unknown
        if missed.any():
            i = int(np.flatnonzero(missed)[0])
            self._violations.append(  # whoever called shall not take it for its own
                f"epoch {cluster_map.epoch}: a read quorum of partition {int(partitions[i])} may miss "
                f"{list(floors)[i].hex()}, acknowledged with {int(least[i])}: {int(holders[i])} of "
                f"{int(count[i])} hold it"
            )

    def _check_step(self, before: ClusterMap, now: ClusterMap) -> None:
        """Note where a partition goes on and a quorum of its owners may not know of the step before."""
        epochs = {node.slot: self.nodes[node.name].epoch for node in before.nodes if node.name in self.nodes}
        switched = (before.phase == COPYING) & (now.phase == SWITCHED)
        finished = (before.phase == SWITCHED) & (now.phase == STABLE)
        for partition in np.flatnonzero(switched | finished).tolist():
            owners = [slot for slot in before.owners[partition].tolist() if slot != NOBODY]
            write = min(before.write_quorum, len(owners))
            changed = int(before.changed[partition])
            ignorant = [slot for slot in owners if epochs.get(slot, changed) < changed]
            if len(ignorant) >= min(write, len(owners) - write + 1):
                self._violations.append(
                    f"epoch {now.epoch}: partition {partition} goes on, and owners {ignorant} of {owners} "
                    f"do not know of epoch {changed}"
                )

    def _check_hinted(self, member: Member, slot: int, hints: list[Hint]) -> None:
        """Look at hints that count as taken: who they were for has them, or else whoever owns them now.

        What some owner promised not to take any more need not be taken: it was never acknowledged.
        """
        promised = np.zeros(self.partitions, np.uint64)
        for each in self.nodes.values():
            if each.member is not None:
                ranges = each.member.state.ranges(DATASET, self.partitions)
                promised = np.maximum(promised, ranges.promised)
        name = next((node.name for node in member.membership.current.nodes if node.slot == slot), "")
        node = self.nodes.get(name)
        for rows in (hint.rows for hint in hints if hint.dataset == DATASET):
            partitions = member.membership.current.partition_of(rows[:, HIGH])
            open_ = rows[:, VERSION] > promised[partitions]
            if node is not None and node.engine is not None:
                held = node.engine.tree(DATASET).held(np.ascontiguousarray(rows[:, : LOW + 1])).versions
                open_ &= held < rows[:, VERSION]
            self._check_held({row[: LOW + 1].tobytes(): Floor(int(row[VERSION])) for row in rows[open_]})

    # The end

    def _heal(self) -> None:
        self.note("heal")
        self.network.cut.clear()
        self.network.conditions = Conditions()
        self.removed.clear()
        for node in self.nodes.values():
            node.skew_ms = SKEW_MS_MAX  # all clocks agree again, and nothing is stamped ahead of them
            node.syncs_fail = 0.0
            if node.process is not None and node.process.paused:
                node.process.resume()
            if node.engine is not None and not node.engine.may_write:
                node.kill()
            node.start()
        if self.map is not None:
            for each in self.map.nodes:
                if each.state == "draining" and each.name in self.nodes:
                    self.operator.start(self.operate(pb.CHANGE_UNDRAIN, each.name, again=True))

    async def _compare(self) -> None:
        """Compare all replicas, as nodes do from time to time, until they are equal."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                for _ in range(ROUNDS):
                    if await self._repaired() and self._equal():
                        return
                    await asyncio.sleep(REPAIR_S)
        raise Violation("replicas do not become equal")

    async def _repaired(self) -> bool:
        """Let every node compare what it leads; return whether there was nothing to send and none missing."""
        try:
            async with asyncio.timeout(COMPARED_S):  # one that is drained meanwhile never answers
                reports = [await node.member.repair() for node in list(self.nodes.values()) if node.member]
        except (KvmetaError, TimeoutError):
            return False
        return not any(report.skipped or report.rows for report in reports)

    def _equal(self) -> bool:
        cluster_map = self.map
        assert cluster_map is not None
        cut, purged = (1 << 64) - 1, np.zeros(self.partitions, np.uint64)
        members = [node.member for node in self.nodes.values() if node.member]
        for member in members:
            purged = np.maximum(purged, member.state.ranges(DATASET, self.partitions).repaired)
        digests = {
            member.slot: member.replica.digests(
                DATASET, range(self.partitions), cut, purged, 0, promise=False
            )[0]
            for member in members
        }
        for partition, owners in enumerate(cluster_map.owners.tolist()):
            if any(slot != NOBODY and slot not in digests for slot in owners):
                return False  # the map changed meanwhile
            told = [digests[slot][partition] for slot in owners if slot != NOBODY]
            if any((each != told[0]).any() for each in told[1:]):
                return False
        return True

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
        if self._violations:
            return self._violations[0]
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


def _memory() -> str | None:
    """Return where files lie in memory; None where no place is known."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _some_keys(rng: random.Random) -> Rows:
    """Return some mixed IDs, u8[n, 2]: a few, so that clients meet on them."""
    count = rng.choice([8, 16, 32])
    return np.frombuffer(rng.randbytes(16 * count), np.uint64).reshape(count, 2)
