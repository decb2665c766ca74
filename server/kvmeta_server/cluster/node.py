"""A node of a cluster: a local store, and all that makes it one of several.

join      who am I, does etcd know me, may I come (back)?
start     replica ─ coordinator ─ peers ─ membership; then in the background: moves, hints, anti-entropy
stop      give the lease up; what was acknowledged is on disk anyway
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.embedded import EmbeddedStore
from kvmeta.errors import (
    FormatError,
    InputError,
    KvmetaError,
    NotFoundError,
    StoreLockedError,
    UnavailableError,
)
from kvmeta.v1 import peer_pb2 as peer
from kvmeta.version import EPOCH_MS, MS_SHIFT
from kvmeta_server.cluster import cluster_map as maps
from kvmeta_server.cluster.anti_entropy import AntiEntropy, Report
from kvmeta_server.cluster.cluster_map import ClusterMap, Node, decode
from kvmeta_server.cluster.coordinator import Coordinator, Written
from kvmeta_server.cluster.etcd import Etcd, Tls
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.membership import LEASE_S, NO_DATASETS, Membership
from kvmeta_server.cluster.moves import Moves
from kvmeta_server.cluster.node_state import Identity, NodeState
from kvmeta_server.cluster.peer_answers import PeerAnswers
from kvmeta_server.cluster.replica import FENCED, Replica
from kvmeta_server.cluster.seams import PeerError
from kvmeta_server.cluster.store import CoordinatedStore
from kvmeta_server.cluster.tables import EtcdTables, local_name, number_of
from kvmeta_server.cluster.transport import GrpcPeers
from kvmeta_server.config import Config
from kvmeta_server.lanes import Lane
from kvmeta_server.logs import Log

RESERVE_MS = 10_000
"""How far ahead of its clock a node notes that it may have stamped."""
HINTS_S = 1.0
REST = 1.0
"""Comparisons that nobody asked for take half of the time at most."""
_ETCD_WAIT_S = 10.0


class NodeCoordinator(Coordinator):
    """The coordinator of a node, which knows when its datasets' entries expire."""

    replica: Replica
    log: Log

    async def write(self, dataset: str, rows: NDArray[np.uint64], *, delete: bool) -> Written:
        """Put or delete rows; what is not acknowledged is told to the log, with the reason."""
        written = await super().write(dataset, rows, delete=delete)
        missing = int((~written.acknowledged).sum())
        if missing:
            self.log.warning("not acknowledged", dataset=dataset, ids=missing, reason=written.reason)
        return written

    def expired(self, dataset: str) -> int:
        """Return the version below which entries of a dataset have expired."""
        return self.replica.tree(dataset).expired()


class ClusterNode:
    """A node on the running event loop. `answers` and `store` are there once it has started."""

    def __init__(self, config: Config, local: EmbeddedStore, log: Log) -> None:
        assert config.cluster is not None
        self._settings = config.cluster
        self._local = local
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._reads = Lane("peer-read", max(4, config.threads.lookup_count))
        self._writes = Lane("peer-write", config.threads.write)
        self._background = Lane("moves", 2)
        self._tasks: list[asyncio.Task[Any]] = []
        settings = self._settings
        self._etcd = Etcd(
            settings.etcd.split(","), Tls(settings.etcd_ca, settings.etcd_cert, settings.etcd_key)
        )
        self.name = settings.node or f"{socket.gethostname()}-{settings.advertise.rpartition(':')[2]}"
        self.state = NodeState(local.engine.path)
        self.membership = Membership(
            self._etcd, settings.name, self._adopt, lambda error: log.fault("membership", error)
        )
        self._replica: Replica | None = None
        self._making = threading.Lock()
        self._stopping = False
        self._sent: dict[int, int] = {}  # how far into each node's hints

    # Life

    async def join(self) -> None:
        """Become, or be again, a member; raise what keeps this node from it."""
        self._check_identity()
        remembered = self.state.map()
        self.membership.go_on_with(remembered, self.state.datasets())
        try:
            await self._load()
        except UnavailableError as error:
            if remembered is None or self.state.identity is None:
                raise
            self._log.warning(
                "etcd does not answer", message=f"{error}; going on with epoch {remembered.epoch}"
            )
            self._check_membership(remembered)
        else:
            await self._join()
        identity, cluster_map = self.state.identity, self.membership.current
        assert identity is not None
        self._check_clock(identity, cluster_map)
        self._local.engine.clock.be(identity.slot, identity.ceiling, self._reserve)
        self._make_parts(remembered or cluster_map, identity.slot)
        await asyncio.to_thread(self.replica.adopt, cluster_map)
        self.state.set_map(cluster_map)
        with suppress(UnavailableError):
            await self.make_datasets()
        for dataset in self.replica.datasets():
            self.replica.allow_purge(dataset)

    def start(self) -> None:
        """Take part: other nodes are asked from now on, and may ask."""
        self.membership.listen(self._follow_datasets)
        self.membership.start(self.slot)
        self.peers.start()
        work = (
            self.moves.run(),
            self._replay_hints(),
            self._compare_now_and_then(),
            self._follow_datasets_once(),
        )
        self._tasks = [asyncio.ensure_future(each) for each in work]

    async def stop(self) -> None:
        """Take part no more."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._replica is not None:
            await self.peers.stop()
        await self.membership.stop()
        for lane in (self._reads, self._writes, self._background):
            lane.close(1.0)

    # Joining

    def _check_identity(self) -> None:
        identity, wanted = self.state.identity, self._settings.name
        if identity is None:
            return
        if identity.cluster != wanted:
            raise InputError(
                f"{self._local.engine.path} belongs to node {identity.name!r} of cluster "
                f"{identity.cluster!r}, not of {wanted!r}; give --data an empty directory, or --cluster "
                f"{identity.cluster}"
            )
        if self._settings.node and self._settings.node != identity.name:
            raise InputError(
                f"{self._local.engine.path} is the data of node {identity.name!r}, not of "
                f"{self._settings.node!r}; start it with the --data that is its own"
            )
        self.name = identity.name

    def _check_membership(self, cluster_map: ClusterMap) -> None:
        identity = self.state.identity
        assert identity is not None
        if identity.cluster_id != cluster_map.cluster_id.hex():
            raise FormatError(
                f"etcd at {self._etcd.url} has another cluster of the name {cluster_map.name!r} "
                f"({cluster_map.cluster_id.hex()}) than this node's ({identity.cluster_id}); "
                "two clusters need two names, or two etcds"
            )
        with suppress(NotFoundError):
            node = cluster_map.node(identity.name)
            if node.slot == identity.slot and node.state != "removed":
                return
        raise InputError(
            f"node {identity.name!r} was taken out of cluster {cluster_map.name!r}, and others have its "
            "data; it does not come back by itself. To join as a new node, empty "
            f"{self._local.engine.path} first"
        )

    async def _load(self) -> None:
        end = time.monotonic() + (_ETCD_WAIT_S if self.state.identity is None else LEASE_S / 2)
        while True:
            try:
                await self.membership.load()
                return
            except UnavailableError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    async def _join(self) -> None:
        engine, settings = self._local.engine, self._settings
        store_id = engine.identity.store_id.hex()
        us = Node(0, self.name, settings.advertise, settings.zone, settings.weight, "active", store_id)
        if self.state.identity is None:
            rows = self._local.stats().rows
            if rows:
                raise InputError(
                    f"{engine.path} holds {rows:,} entries of a single server; a node starts empty. "
                    "Copy them in through any node with load"
                )
            founded = maps.found(
                settings.name, uuid.uuid4().bytes, us, partitions=settings.partitions,
                replicas=settings.replicas, write_quorum=settings.write_quorum,
                max_skew_ms=round(settings.max_skew_s * 1000),
            )  # fmt: skip
            cluster_map = await self.membership.change_map(
                lambda held: self._with_us(held, us), founded=founded
            )
            slot = cluster_map.node(self.name).slot
            self.state.set_identity(Identity(cluster_map.cluster_id.hex(), settings.name, self.name, slot))
            self._log.info(
                "joined", cluster=settings.name, node=self.name, slot=slot, epoch=cluster_map.epoch
            )
        else:
            raw = self.membership.value("map")
            if raw is None:
                raise FormatError(
                    f"etcd at {self._etcd.url} has no cluster {settings.name!r}, {engine.path} is of one: "
                    "is it another etcd, or one that lost its data? Restore it from a snapshot"
                )
            self._check_membership(decode(raw))
            await self._refuse_twin(self.state.identity.slot)
            node = self.membership.current.node(self.name)
            if node.store_id != store_id:
                raise InputError(
                    f"node {self.name!r} had store {node.store_id}, and {engine.path} is {store_id}: "
                    "another node's data, or a copy; a node that lost its data joins under a new name"
                )
            if (node.address, node.zone, node.weight) != (us.address, us.zone, us.weight):
                await self.membership.change_map(
                    lambda held: held.with_node(self.name, address=us.address, zone=us.zone, weight=us.weight)
                )
        await self.membership.load()

    def _with_us(self, held: ClusterMap, us: Node) -> ClusterMap:
        for node in held.nodes:
            if node.name == us.name:
                if node.store_id == us.store_id and node.state == "active":
                    return held  # we were here, and died before we noted it
                raise InputError(
                    f"cluster {held.name!r} has a node {us.name!r} already, with other data; give this one "
                    "another --node name, or remove the old one first: kvmeta cluster remove"
                )
            if node.address == us.address and node.state != "removed":
                raise InputError(
                    f"cluster {held.name!r} knows {us.address} as node {node.name!r}; two nodes need two "
                    "addresses"
                )
        return held.joined(us)

    async def _refuse_twin(self, slot: int) -> None:
        """Wait for the lease of our last life to end; StoreLockedError where somebody keeps it alive."""
        end = time.monotonic() + LEASE_S + 2
        while await self.membership.read(f"live/{slot}") is not None:
            if time.monotonic() > end:
                raise StoreLockedError(
                    f"node {self.name!r} of cluster {self._settings.name!r} is up elsewhere: was its data "
                    "copied?"
                )
            await asyncio.sleep(0.2)

    def _check_clock(self, identity: Identity, cluster_map: ClusterMap) -> None:
        now_ms = self._local.engine.clock.now_ms()
        ahead_ms = (identity.ceiling >> MS_SHIFT) + EPOCH_MS - now_ms
        if identity.ceiling and ahead_ms > cluster_map.max_skew_ms + RESERVE_MS:
            raise UnavailableError(
                f"this node has stamped up to {ahead_ms / 1000:.0f} s ahead of its clock, which is more than "
                f"the {cluster_map.max_skew_ms / 1000:g} s allowed; set the clock right, or wait until it is "
                "there"
            )

    def _reserve(self, stamp: int) -> int:
        """Note that stamps may come up to a while after `stamp`; return up to where."""
        ceiling = stamp + (RESERVE_MS << MS_SHIFT)
        self.state.reserve(ceiling)
        return ceiling

    def _make_parts(self, cluster_map: ClusterMap, slot: int) -> None:
        engine, settings = self._local.engine, self._settings
        self.slot = slot
        self._replica = Replica(engine, self.state, slot, cluster_map)
        self.peers = GrpcPeers(self._replica, self.membership, self._reads, self._writes)
        self.hints = HintFiles(self.state.path / "hints", settings.hints_bytes_max)
        self.coordinator = NodeCoordinator(slot, self.membership, self.peers, engine.clock, self.hints)
        self.coordinator.replica, self.coordinator.log = self._replica, self._log
        self.peers.coordinator = self.coordinator
        self.anti_entropy = AntiEntropy(
            slot, self.membership, self.peers, engine.clock, self.coordinator.expired
        )
        self.moves = Moves(
            self._replica, self.state, self.membership, self.peers, self._background, self._log,
            lambda: settings.move_rows_s,
        )  # fmt: skip
        self.tables = EtcdTables(self.membership, self._run, self.make_datasets)
        self.store = CoordinatedStore(
            self._local, self._replica, self.coordinator, self.membership, self.peers, self.tables, self._loop
        )
        self.answers = PeerAnswers(
            self._replica, self.coordinator, self.membership, self._reads, self._writes, self.how_it_is,
            self.make_datasets,
        )  # fmt: skip

    @property
    def replica(self) -> Replica:
        """Return this node's replica."""
        assert self._replica is not None
        return self._replica

    async def _adopt(self, cluster_map: ClusterMap) -> None:
        if self._replica is not None:
            replica = self._replica
            await asyncio.to_thread(replica.adopt, cluster_map)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.store.run(work)

    # What others ask

    def how_it_is(self) -> peer.StateResponse:
        """Return what this node tells others of itself."""
        cluster_map = self.membership.current
        repaired = self.state.ranges("default", cluster_map.partitions).repaired
        held = cluster_map.held_by(self.slot)
        return peer.StateResponse(
            name=self.name,
            epoch=self.replica.persisted,
            copied=self.moves.copied(self.replica.map),
            hints={
                cluster_map.by_slot[slot].name: rows
                for slot, rows in self.hints.waiting().items()
                if slot in cluster_map.by_slot
            },
            leftover=int(self.state.leftover(cluster_map.partitions).sum()),
            unix_ms=self._local.engine.clock.now_ms(),
            repaired=int((repaired[held] > 0).sum()),
            rows_copied=self.moves.rows_copied,
        )

    # Datasets

    def _follow_datasets(self) -> None:
        self._tasks.append(asyncio.ensure_future(self._follow_datasets_once()))
        self._tasks = [task for task in self._tasks if not task.done()]

    async def _follow_datasets_once(self) -> None:
        table = self.membership.dataset_table()
        with suppress(KvmetaError):
            await asyncio.to_thread(self._make_known, table)

    async def make_datasets(self) -> None:
        """Have here what datasets etcd says there are, now."""
        held = await self.membership.read("datasets")
        table = json.loads(NO_DATASETS if held is None else held.data)
        await asyncio.to_thread(self._make_known, table)

    def _make_known(self, table: dict[str, Any] | None) -> None:
        """Make what is listed and missing; drop what was listed once and is not any more.

        Without a table nothing is known, so nothing is dropped; nor is what is newer than the table.
        """
        if table is not None:
            with self._making:
                self._make_listed(table)

    def _make_listed(self, table: dict[str, Any]) -> None:
        engine = self._local.engine
        wanted = {local_name(name, options["id"]): options for name, options in table["datasets"].items()}
        here = set(self.replica.datasets())
        for name, options in wanted.items():
            if name not in here:
                engine.create_dataset(
                    name, ttl_s=options["ttl_s"], bottom_filter=options["bottom_filter"], exist_ok=True
                )
        for name in here - set(wanted) - {"default"}:
            if number_of(name) < table["next"]:
                engine.drop_dataset(name)
                self.state.forget(name)
        raw = json.dumps(table).encode()
        if raw != self.state.datasets():
            self.state.set_datasets(raw)

    # Background work

    async def _replay_hints(self) -> None:
        while True:
            for slot in list(self.hints.waiting()):
                try:
                    await self._replay(slot)
                except PeerError:  # later
                    pass
                except Exception as error:  # noqa: BLE001 - hints of others must not wait for these
                    self._log.fault("hints", error)
            await asyncio.sleep(HINTS_S)

    async def _replay(self, slot: int) -> None:
        """Send a node what waits for it; what it owns no more goes to who does."""
        gone = slot not in self.membership.current.by_slot
        if not gone and not self.peers.likely(slot):
            return
        end, rows = self._sent.get(slot, 0), 0
        for hint in self.hints.read(slot, end):
            end = hint.end
            if hint.dataset not in self.replica.datasets():
                continue  # dropped since
            fenced = np.ones(len(hint.rows), np.bool_)
            if not gone:
                outcomes, _ = await self.peers.apply(slot, hint.dataset, 0, hint.rows)
                fenced = outcomes == FENCED
            if fenced.any():
                held = await self.coordinator.repair(hint.dataset, np.ascontiguousarray(hint.rows[fenced]))
                if not held.all():
                    return  # their owners do not answer: later
            rows += len(hint.rows)
            self._sent[slot] = end
            if self._stopping:
                return
        if self.hints.done(slot, end):
            self._sent.pop(slot, None)
            self._log.info("hints taken", node=slot, rows=rows)

    async def _compare_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._settings.repair_interval_s)
            try:
                await self.repair("", rest=REST)
            except KvmetaError as error:
                self._log.warning("anti-entropy waits", reason=str(error))
            except Exception as error:  # noqa: BLE001 - the next round comes
                self._log.fault("anti-entropy", error)

    async def repair(self, dataset: str, rest: float = 0.0) -> Report:
        """Compare what this node is the first owner of; all datasets where none is named."""
        if self.membership.lease_left_s() <= 0:
            raise UnavailableError("this node holds no lease, for etcd does not answer; try again later")
        total = Report()
        names = [self.tables.local_name(dataset)] if dataset else self.replica.datasets()
        for name in names:
            report = await self.anti_entropy.compare(name, rest)
            total.partitions += report.partitions
            total.rows += report.rows
            total.skipped += report.skipped
        return total
