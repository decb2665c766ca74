"""A simulated node: the production node over simulated everything, which dies, comes back and forgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.state import State
from kvmeta.errors import KvmetaError, StorageFullError, UnavailableError
from kvmeta.protocol.messages import parse
from kvmeta.protocol.methods import PEER_METHODS
from kvmeta.protocol.status import WRONG_NODE
from kvmeta.version import EPOCH_MS
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.seams import Hint, Pace, World
from kvmeta_server.config import ClusterSettings
from kvmeta_server.refusal import Refused
from kvmeta_server.simulator.authority import KeySpace, SimulatedEtcd
from kvmeta_server.simulator.disk import SimulatedDisk, SimulatedLane
from kvmeta_server.simulator.loop import Process
from kvmeta_server.simulator.network import Network, SimulatedWire
from kvmeta_server.simulator.storage import DirectoryStorage, MemoryStorage, Storage
from kvmeta_server.simulator.watching import WatchedClock, WatchedHints, WatchedPeers

Rows = NDArray[np.uint64]
START_MS = EPOCH_MS + 200_000_000_000
RETRY_S = 2.0
LONELY_SHARE = 0.6
PACE = Pace(
    probe_s=6.0, step_s=1.2, hints_s=3.0, renew_s=2.0, long_s=12.0, grace_s=2.0,
    mend_s=1e9,  # nothing is damaged here, and a look changes what comes after it
)  # fmt: skip


@dataclass
class Repairs:
    """Which of the mechanisms that bring replicas together are on."""

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
    hinted: Callable[[Node, int, list[Hint]], None]
    """Called when a node's hints for a slot count as taken."""
    took: Callable[[int, Rows], None]
    """Called when a node, by slot, took rows that are no client's write."""
    directory: Path | None = None
    """Where the nodes' stores lie; None: in memory."""
    left_out: float = 0.0
    """How often an owner that a write can do without never hears of it, so that quorums are minimal."""
    lonely: int = 0
    """From how many more owners writes are kept: then they are not acknowledged."""
    cluster_id: bytes = b""
    """Of the cluster that clients mean."""
    purges_at_once: bool = False
    """Whether tombstones go as soon as they may."""
    faults: list[str] = field(default_factory=list)

    def tell(self, where: str, fault: object) -> None:
        """Take in a fault of the program."""
        self.faults.append(f"{where}: {fault}")


class SimulatedNode:
    """A node by name. `life` is its production node while it takes part; `engine` what its last life had."""

    def __init__(self, shared: Shared, name: str, zone: str, host: str = "") -> None:
        self.shared = shared
        self.name = name
        self.host = host or name
        """What its process is called in the network."""
        self.address = self.host
        """Where it listens, when it is started next."""
        self.zone = zone
        self.skew_ms = 0
        self.stamped = 0
        """The last stamp, of all lives."""
        self.syncs_fail = 0.0
        """The share of syncs and writes that fail."""
        self.process: Process | None = None
        self.life: Node | None = None
        self.is_copy = False
        self.must_be_refused = False
        """Whether etcd or other nodes can tell that another life of it lasts."""
        self.twin: SimulatedNode | None = None
        """A copy that lives beside this node."""
        self._gone = False
        self._removed = False
        self._left_out: dict[int, int] = {}  # owners that a write, by its version, was not sent to
        rng = shared.rng
        self._storage: Storage = (
            MemoryStorage(rng, self._failure, purges=shared.purges_at_once)
            if shared.directory is None
            else DirectoryStorage(shared.directory / name, purges=shared.purges_at_once)
        )
        self._disk = SimulatedDisk(rng, self._failure)
        self.engine: State | None = None

    @property
    def up(self) -> bool:
        """Return whether it takes part."""
        return self.process is not None and self.process.alive and self.life is not None

    @property
    def epoch(self) -> int:
        """Return the epoch of the map that it works under, or will when it starts again without etcd."""
        if self.life is not None:
            return self.life.replica.persisted
        remembered = self.map
        return 0 if remembered is None else remembered.epoch

    @property
    def map(self) -> ClusterMap | None:
        """Return the map on its disk; None where there is none."""
        return NodeState(self._disk).map()

    def start(self) -> None:
        """Begin a life, unless one lasts or there is to be none any more."""
        if not self._gone and (self.process is None or not self.process.alive):
            self.process = Process(self.host)
            self.process.start(self._live(self.process))

    def kill(self) -> None:
        """End without a word; what was not synced may be lost.

        A copy that lives beside it ends, too: alone it would be taken for this node started again.
        """
        if self.twin is not None:
            self.twin.retire()
        if self.process is not None:
            self.process.kill()
            self.life = None
            self._disk.lose_power()
            self._storage.crash()

    def retire(self) -> None:
        """End for good."""
        self.kill()
        self._gone = True

    def come_back(self) -> None:
        """Begin a life after an operator removed the node: it must be told so."""
        self._gone, self._removed = False, True
        self.start()

    def copied(self) -> SimulatedNode | None:
        """Return a node over a copy of this one's data; None where that is not in memory."""
        if not isinstance(self._storage, MemoryStorage):
            return None
        twin = SimulatedNode(self.shared, self.name, self.zone, f"{self.name}-copy")
        twin._storage = self._storage.copied()
        twin._disk = self._disk.copied()
        twin.stamped, twin.is_copy = 0, True
        self.twin = twin
        return twin

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
            peers=lambda peers: WatchedPeers(peers, self._leaves_out, shared.took),
            hints=lambda hints: WatchedHints(hints, self._hinted, keeps=shared.repairs.hints),
            brings_reads=shared.repairs.read,
        )  # fmt: skip
        while True:
            settings = ClusterSettings(
                name="sim", node=self.name, advertise=self.address, zone=self.zone, **shared.settings
            )
            try:
                clock = WatchedClock(self._unix_ms, self._note_stamp)
                self.engine = self._storage.open(clock)
                node = Node(settings, self.engine, world, PACE)
                await node.join()
                break
            except KvmetaError as error:
                shared.note("does not start", self.name, str(error))
                if self._removed:
                    return
                await asyncio.sleep(RETRY_S)
        if self.must_be_refused:
            shared.tell(self.name, "a copy of its data takes part beside it")
        if self._removed and node.membership.answers:
            shared.tell(self.name, "was removed, and is a member again")
        shared.network.listen(settings.advertise, process, self._serve)
        self.life = node
        node.start()
        shared.note("up", self.name)

    def _note_stamp(self, stamp: int) -> None:
        """Tell of a fault where a stamp is not above all that this node stamped before, in all its lives."""
        if stamp <= self.stamped and not self.is_copy:
            self.shared.tell(self.name, f"{stamp} is stamped after {self.stamped}")
        self.stamped = stamp

    def _hinted(self, slot: int, hints: list[Hint]) -> None:
        if self.life is not None:
            self.shared.hinted(self.life, slot, hints)

    def _leaves_out(self, version: int) -> bool:
        """Return whether a write leaves out the owner it is being sent to: no more than it can spare."""
        shared = self.shared
        spare = shared.settings["replicas"] - shared.settings["write_quorum"] + shared.lonely
        count = self._left_out.get(version, 0)
        if count >= spare or shared.rng.random() >= (LONELY_SHARE if shared.lonely else shared.left_out):
            return False
        self._left_out[version] = count + 1
        return True

    async def _serve(self, method: str, request: Any) -> Any:
        life = self.life
        if life is None:
            raise UnavailableError("starting")
        if method in PEER_METHODS:
            known = PEER_METHODS[method]
            answer = getattr(life.answers, known.function)
            try:
                return (await answer(parse(known.request, request))).SerializeToString()
            except KvmetaError:
                raise
            except Exception as error:
                self.shared.tell(f"{self.name}, {method}", repr(error))
                raise UnavailableError("a fault of the server") from error
        if life.membership.current.cluster_id != self.shared.cluster_id:  # as the SDK has it checked
            raise Refused(WRONG_NODE, "another cluster was meant")
        return await request(life)

    def _unix_ms(self) -> int:
        return START_MS + self.skew_ms + int(asyncio.get_running_loop().time() * 1000)

    def _failure(self) -> KvmetaError | None:
        rng = self.shared.rng
        if not self.syncs_fail or rng.random() >= self.syncs_fail:
            return None
        return rng.choice(
            [StorageFullError("no space left on device"), UnavailableError("input/output error")]
        )


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
