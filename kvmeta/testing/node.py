"""A simulated node: the production member over simulated everything, which dies, comes back and forgets."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.engine import Engine
from kvmeta.engine.kernels.layout import LOW, VERSION
from kvmeta.errors import KvmetaError, StorageFullError, UnavailableError
from kvmeta.protocol.calls import PEER_METHODS
from kvmeta.protocol.frame import parse
from kvmeta.testing.authority import KeySpace, SimulatedEtcd
from kvmeta.testing.disk import SimulatedDisk, SimulatedLane
from kvmeta.testing.loop import Process
from kvmeta.testing.memory_engine import OPTIONS, MemoryDisk, MemoryEngine
from kvmeta.testing.network import Network, SimulatedWire
from kvmeta.version import EPOCH_MS, HybridClock
from kvmeta_server.cluster.member import Member
from kvmeta_server.cluster.replica import Applied
from kvmeta_server.cluster.seams import Pace, World
from kvmeta_server.config import ClusterSettings

Rows = NDArray[np.uint64]
START_MS = EPOCH_MS + 200_000_000_000
RETRY_S = 2.0
OPTIONS_OF_NODES = replace(OPTIONS, keep_tombstones=True)
PACE = Pace(probe_s=4.0, step_s=1.2, hints_s=3.0, renew_s=2.0, long_s=12.0, grace_s=2.0)


class Sent(NamedTuple):
    """What was sent to replicas for a client's write."""

    version: int
    epoch: int


_SENT: contextvars.ContextVar[dict[bytes, Sent] | None] = contextvars.ContextVar("sent", default=None)


@dataclass
class Repairs:
    """Which of the mechanisms that repair replicas are on."""

    read: bool = True
    hints: bool = True
    anti_entropy: bool = True


@dataclass
class Shared:
    """What all nodes of a simulation share."""

    rng: random.Random
    network: Network
    space: KeySpace
    repairs: Repairs
    settings: dict[str, Any]
    note: Callable[..., None]
    faults: list[str] = field(default_factory=list)

    def tell(self, where: str, fault: object) -> None:
        """Take in a fault of the program."""
        self.faults.append(f"{where}: {fault}")


class WatchedClock(HybridClock):
    """A node's clock, over all its lives: what it stamps must rise, whatever became of the wall clock."""

    def __init__(self, node: SimulatedNode, unix_ms: Callable[[], int]) -> None:
        super().__init__(unix_ms=unix_ms)
        self._node = node

    def stamp(self, count: int = 1) -> int:
        """Return a stamp; a fault where it is not above all that the node stamped before."""
        stamp = super().stamp(count)
        if stamp <= self._node.stamped:
            self._node.shared.tell(self._node.name, f"{stamp} is stamped after {self._node.stamped}")
        self._node.stamped = stamp
        return stamp


class SimulatedNode:
    """A node by name. `engine` is what its last life had, or has, in memory."""

    def __init__(self, shared: Shared, name: str, zone: str) -> None:
        self.shared = shared
        self.name = name
        self.zone = zone
        self.skew_ms = 0
        self.stamped = 0
        """The last stamp, of all lives."""
        self.syncs_fail = 0.0
        """The share of syncs and writes that fail."""
        self.process: Process | None = None
        self.member: Member | None = None
        self._gone = False
        rng = shared.rng
        self._memory = MemoryDisk(
            rng.randbytes(16), fail=self._failure, keep_failed=lambda: rng.random() < 0.5
        )
        self._disk = SimulatedDisk(rng, self._failure)
        self.engine: Engine | None = None

    @property
    def up(self) -> bool:
        """Return whether it takes part."""
        return self.process is not None and self.process.alive and self.member is not None

    def start(self) -> None:
        """Begin a life, unless one lasts or there is to be none any more."""
        if not self._gone and (self.process is None or not self.process.alive):
            self.process = Process(self.name)
            self.process.start(self._live(self.process))

    def kill(self) -> None:
        """End without a word; what was not synced may be lost."""
        if self.process is not None:
            self.process.kill()
            self.member = None
            self._disk.lose_power()

    def retire(self) -> None:
        """End for good."""
        self.kill()
        self._gone = True

    async def _live(self, process: Process) -> None:
        shared = self.shared
        world = World(
            authority=SimulatedEtcd(shared.space, shared.network, process),
            wire=SimulatedWire(shared.network, process),
            disk=self._disk,
            reads=SimulatedLane(shared.rng), writes=SimulatedLane(shared.rng),
            background=SimulatedLane(shared.rng), control=SimulatedLane(shared.rng),
            log=_Log(shared, self.name),
            random_bytes=shared.rng.randbytes,
        )  # fmt: skip
        settings = ClusterSettings(
            name="sim", node=self.name, advertise=self.name, zone=self.zone, **shared.settings
        )
        while True:
            try:
                clock = WatchedClock(self, self._unix_ms)
                self.engine = MemoryEngine(self._memory, clock, OPTIONS_OF_NODES)
                member = Member(settings, self.engine, world, PACE)
                await member.join()
                break
            except KvmetaError as error:
                shared.note("does not start", self.name, str(error))
                await asyncio.sleep(RETRY_S)
        self._adjust(member)
        shared.network.listen(self.name, process, self._serve)
        self.member = member
        member.start()
        shared.note("up", self.name)

    def _adjust(self, member: Member) -> None:
        """Switch repairs off, and note what is sent for a client's call."""
        repairs = self.shared.repairs
        member.coordinator.repairs_reads = repairs.read
        if not repairs.hints:
            member.hints.add = lambda slot, dataset, rows: None  # type: ignore[method-assign]
        apply = member.peers.apply

        async def noted(slot: int, dataset: str, epoch: int, rows: Rows, *, repair: bool = False) -> Applied:
            sent = _SENT.get()
            if sent is not None:
                for row in rows:
                    sent[row[: LOW + 1].tobytes()] = Sent(int(row[VERSION]), epoch)
            return await apply(slot, dataset, epoch, rows, repair=repair)

        member.peers.apply = noted  # type: ignore[method-assign]

    async def _serve(self, method: str, request: Any) -> Any:
        member = self.member
        if member is None:
            raise UnavailableError("starting")
        if method in PEER_METHODS:
            known = PEER_METHODS[method]
            answer = getattr(member.answers, method.lower())
            try:
                return (await answer(parse(known.request, request))).SerializeToString()
            except KvmetaError:
                raise
            except Exception as error:
                self.shared.tell(f"{self.name}, {method}", repr(error))
                raise UnavailableError("a fault of the server") from error
        return await request(member)

    def _unix_ms(self) -> int:
        return START_MS + self.skew_ms + int(asyncio.get_running_loop().time() * 1000)

    def _failure(self) -> KvmetaError | None:
        rng = self.shared.rng
        if not self.syncs_fail or rng.random() >= self.syncs_fail:
            return None
        return rng.choice(
            [StorageFullError("no space left on device"), UnavailableError("input/output error")]
        )


async def sending(work: Any, sent: dict[bytes, Sent]) -> Any:
    """Return what `work` returns; note in `sent` what is sent of each mixed ID at last."""
    _SENT.set(sent)
    try:
        return await work
    finally:
        _SENT.set(None)


class _Log:
    """Tells of faults, and of nothing else."""

    def __init__(self, shared: Shared, name: str) -> None:
        self._shared = shared
        self._name = name

    def info(self, event: str, **fields: Any) -> None:
        self._shared.note(event, self._name)

    def warning(self, event: str, **fields: Any) -> None:
        self._shared.note(event, self._name, fields.get("reason", ""))

    def fault(self, where: str, error: BaseException) -> None:
        if not isinstance(error, KvmetaError):
            self._shared.tell(f"{self._name}, {where}", repr(error))
