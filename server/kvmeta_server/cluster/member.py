"""A member of a cluster: an engine, and all that makes it one of several. It knows no gRPC, files or threads.

join      who am I, does the authority know me, may I come (back)?
start     replica ─ coordinator ─ peers ─ membership; then by itself: moves, handoff, anti-entropy, mending
stop      give the lease up; what was acknowledged is on disk anyway
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import suppress
from typing import Any

from kvmeta.engine.engine import Engine
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
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.handoff import Handoff
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.membership import LEASE_S, NO_DATASETS, Membership, local_name, number_of
from kvmeta_server.cluster.mending import Mending
from kvmeta_server.cluster.moves import Moves
from kvmeta_server.cluster.node_state import Identity, NodeState
from kvmeta_server.cluster.peer_answers import PeerAnswers
from kvmeta_server.cluster.peers import NodePeers
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.seams import Pace, World
from kvmeta_server.config import ClusterSettings, Unsaid

RESERVE_MS = 10_000
"""How far ahead of its clock a node notes that it may have stamped."""
REST = 1.0
"""Comparisons that nobody asked for take half of the time at most."""
_ETCD_WAIT_S = 10.0


class Member:
    """A member on the running event loop. `answers` and `coordinator` are there once it has joined."""

    def __init__(self, settings: ClusterSettings, engine: Engine, world: World, pace: Pace) -> None:
        self._settings = settings
        self._engine = engine
        self._world = world
        self._log = world.log
        self._pace = pace
        self._tasks: list[asyncio.Task[Any]] = []
        self._making = threading.Lock()
        self._replica: Replica | None = None
        self.name = settings.node or f"{socket.gethostname()}-{settings.advertise.rpartition(':')[2]}"
        self.state = NodeState(world.disk)
        self.membership = Membership(
            world.authority, settings.name, self._adopt, lambda error: world.log.fault("membership", error),
            pace,
        )  # fmt: skip

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
        self._engine.clock.be(identity.slot, identity.ceiling, self._reserve)
        self._make_parts(remembered or cluster_map, identity.slot)
        await self._adopt(cluster_map)
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
            self.handoff.run(),
            self.mending.run(),
            self._compare_now_and_then(),
            self._follow_datasets_once(),
        )
        self._tasks = [asyncio.ensure_future(each) for each in work]

    async def stop(self) -> None:
        """Take part no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._replica is not None:
            await self.peers.stop()
        await self.membership.stop()
        for lane in (self._world.reads, self._world.writes, self._world.background, self._world.control):
            lane.close(1.0)

    # Joining

    def _check_identity(self) -> None:
        identity, wanted = self.state.identity, self._settings.name
        if identity is None:
            return
        if identity.cluster != wanted:
            raise InputError(
                f"{self._engine.path} belongs to node {identity.name!r} of cluster "
                f"{identity.cluster!r}, not of {wanted!r}; give --data an empty directory, or --cluster "
                f"{identity.cluster}"
            )
        if self._settings.node and self._settings.node != identity.name:
            raise InputError(
                f"{self._engine.path} is the data of node {identity.name!r}, not of "
                f"{self._settings.node!r}; start it with the --data that is its own"
            )
        self.name = identity.name

    def _check_membership(self, cluster_map: ClusterMap) -> None:
        identity = self.state.identity
        assert identity is not None
        if identity.cluster_id != cluster_map.cluster_id.hex():
            raise FormatError(
                f"etcd at {self._world.authority.url} has another cluster of the name {cluster_map.name!r} "
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
            f"{self._engine.path} first"
        )

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + (_ETCD_WAIT_S if self.state.identity is None else LEASE_S / 2)
        while True:
            try:
                await self.membership.load()
                return
            except UnavailableError:
                if loop.time() > end:
                    raise
                await asyncio.sleep(0.2)

    async def _join(self) -> None:
        engine, settings = self._engine, self._settings
        store_id = engine.identity.store_id.hex()
        us = Node(0, self.name, settings.advertise, settings.zone, settings.weight, "active", store_id)
        if self.state.identity is None:
            rows = sum(tree.rows for tree in engine.trees.values())
            if rows:
                raise InputError(
                    f"{engine.path} holds {rows:,} entries of a single server; a node starts empty. "
                    "Copy them in through any node with load"
                )
            founded = maps.found(
                settings.name, self._world.random_bytes(16), us, partitions=settings.partitions,
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
                    f"etcd at {self._world.authority.url} has no cluster {settings.name!r}, {engine.path} is "
                    "of one: is it another etcd, or one that lost its data? Restore it from a snapshot"
                )
            held = decode(raw)
            self._check_membership(held)
            self._check_founding(held)
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

    def _check_founding(self, held: ClusterMap) -> None:
        """Raise InputError where a setting was given of which the cluster was founded with another value."""
        for name in ("replicas", "write_quorum", "partitions"):
            given, there = getattr(self._settings, name), getattr(held, name)
            if given != there and not isinstance(given, Unsaid):
                raise InputError(
                    f"cluster.{name}: {given} was given, and cluster {held.name!r} at "
                    f"{self._world.authority.url} was founded with {there}, which stays. Leave the setting "
                    "out to join that cluster; another cluster needs another name"
                )

    def _with_us(self, held: ClusterMap, us: Node) -> ClusterMap:
        self._check_founding(held)
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
        loop = asyncio.get_running_loop()
        end = loop.time() + LEASE_S + 2
        while await self.membership.read(f"live/{slot}") is not None:
            if loop.time() > end:
                raise StoreLockedError(
                    f"node {self.name!r} of cluster {self._settings.name!r} is up elsewhere: was its data "
                    "copied?"
                )
            await asyncio.sleep(0.2)

    def _check_clock(self, identity: Identity, cluster_map: ClusterMap) -> None:
        now_ms = self._engine.clock.now_ms()
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
        engine, settings, world, pace = self._engine, self._settings, self._world, self._pace
        self.slot = slot
        replica = self._replica = Replica(engine, self.state, slot, cluster_map)
        self.peers = NodePeers(replica, self.membership, world, pace)
        self.hints = HintFiles(world.disk, settings.hints_bytes_max, world.log)

        def expired(dataset: str) -> int:
            return replica.tree(dataset).expired()

        self.coordinator = Coordinator(
            slot, self.membership, self.peers, engine.clock, self.hints, expired=expired, log=world.log
        )
        self.peers.coordinator = self.coordinator
        self.handoff = Handoff(
            self.hints, self.membership, self.peers, self.coordinator, replica.datasets, world.log,
            pace.hints_s,
        )  # fmt: skip
        self.anti_entropy = AntiEntropy(
            slot, self.membership, self.peers, engine.clock, expired, pace.grace_s,
            rows_s_max=settings.move_rows_s, may_go_on=self._check_lease,
        )  # fmt: skip
        self.moves = Moves(
            replica, self.state, self.membership, self.peers, world, pace.step_s, settings.move_rows_s
        )
        self.mending = Mending(replica, self.peers, world.background, world.log, pace.mend_s, pace.settled_s)
        self.answers = PeerAnswers(
            replica, self.coordinator, self.membership, world, self.how_it_is, self.make_datasets
        )

    @property
    def replica(self) -> Replica:
        """Return this node's replica."""
        assert self._replica is not None
        return self._replica

    async def _adopt(self, cluster_map: ClusterMap) -> None:
        if self._replica is not None:
            replica = self._replica
            await self._world.control.run(lambda: replica.adopt(cluster_map))

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
            unix_ms=self._engine.clock.now_ms(),
            repaired=int((repaired[held] > 0).sum()),
            rows_copied=self.moves.rows_copied,
            damaged=self.mending.damaged,
            mended=self.mending.mended,
            hints_dropped=self.hints.dropped_rows,
        )

    # Datasets

    def _follow_datasets(self) -> None:
        self._tasks.append(asyncio.ensure_future(self._follow_datasets_once()))
        self._tasks = [task for task in self._tasks if not task.done()]

    async def _follow_datasets_once(self) -> None:
        table = self.membership.dataset_table()
        with suppress(KvmetaError):
            await self._world.control.run(lambda: self._make_known(table))

    async def make_datasets(self) -> None:
        """Have here what datasets etcd says there are, now."""
        held = await self.membership.read("datasets")
        table = json.loads(NO_DATASETS if held is None else held.data)
        await self._world.control.run(lambda: self._make_known(table))

    def _make_known(self, table: dict[str, Any] | None) -> None:
        """Make what is listed and missing; drop what was listed once and is not any more.

        Without a table nothing is known, so nothing is dropped; nor is what is newer than the table.
        """
        if table is not None:
            with self._making:
                self._make_listed(table)

    def _make_listed(self, table: dict[str, Any]) -> None:
        engine = self._engine
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

    async def _compare_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._settings.repair_interval_s)
            try:
                await self.repair(rest=REST)
            except KvmetaError as error:
                self._log.warning("anti-entropy waits", reason=str(error))
            except Exception as error:  # noqa: BLE001 - the next round comes
                self._log.fault("anti-entropy", error)

    async def repair(self, dataset: str = "", rest: float = 0.0) -> Report:
        """Compare what this node is the first owner of: of one dataset, by its name on nodes, or of all."""
        self._check_lease()
        total = Report()
        for name in [dataset] if dataset else self.replica.datasets():
            report = await self.anti_entropy.compare(name, rest)
            total.partitions += report.partitions
            total.rows += report.rows
            total.skipped += report.skipped
        return total

    def _check_lease(self) -> None:
        if self.membership.lease_left_s() <= 0:
            raise UnavailableError("this node holds no lease, for etcd does not answer; try again later")
