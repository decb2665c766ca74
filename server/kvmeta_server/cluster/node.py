"""A node of a cluster: an engine, and all that makes it one of several. It knows no gRPC, files or threads.

join      who am I, does the authority know me, may I come (back)?
start     replica ─ coordinator ─ peers ─ membership; then by itself: moves, handoff, anti-entropy, mending
stop      give the lease up; what was acknowledged is on disk anyway
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from kvmeta.engine.state import State
from kvmeta.errors import KvmetaError, NotFoundError, UnavailableError
from kvmeta.v1 import peer_pb2 as peer
from kvmeta.version import MS_SHIFT
from kvmeta_server.cluster.anti_entropy import AntiEntropy, Report
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.datasets import Datasets
from kvmeta_server.cluster.handoff import Handoff
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.joining import RESERVE_MS, Joining
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.mending import Mending
from kvmeta_server.cluster.moves import Moves
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.parties import Parties
from kvmeta_server.cluster.peer_answers import PeerAnswers
from kvmeta_server.cluster.peers import NodePeers
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.seams import Pace, World
from kvmeta_server.config import ClusterSettings

REST = 1.0
"""Comparisons that nobody asked for take half of the time at most."""


class Node:
    """A node on the running event loop. `answers` and `coordinator` are there once it has joined."""

    def __init__(self, settings: ClusterSettings, engine: State, world: World, pace: Pace) -> None:
        self._settings = settings
        self._engine = engine
        self._world = world
        self._log = world.log
        self._pace = pace
        self._tasks: list[asyncio.Task[Any]] = []
        self._replica: Replica | None = None
        self.state = NodeState(world.disk)
        self.membership = Membership(world.authority, settings.name, self._adopt, world.log, pace)
        self._joining = Joining(settings, engine, world, self.state, self.membership, pace)

    # Life

    async def join(self) -> None:
        """Become, or be again, a member; raise what keeps this node from it."""
        remembered = await self._joining.join()
        identity, cluster_map = self.state.identity, self.membership.current
        assert identity is not None
        self._engine.clock.be(identity.slot, identity.ceiling, self._reserve)
        self._make_parts(remembered or cluster_map, identity.slot)
        await self._adopt(cluster_map)
        self.state.set_map(cluster_map)
        with suppress(UnavailableError):
            await self.datasets.make()
        for dataset in self.replica.datasets():
            self.replica.allow_purge(dataset)

    def start(self) -> None:
        """Take part: other nodes are asked from now on, and may ask."""
        self.membership.listen(self._follow_datasets)
        self.membership.start(
            self.slot, self._engine.identity.store_id, self.parties.life, self.parties.fence
        )
        self._node_peers.start()
        work = (
            self.moves.run(),
            self.handoff.run(),
            self.mending.run(),
            self._compare_now_and_then(),
            self.datasets.follow(),
            self._joining.keep_address(self.parties.fence),
        )
        self._tasks = [asyncio.ensure_future(each) for each in work]

    async def stop(self) -> None:
        """Take part no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._replica is not None:
            await self._node_peers.stop()
        await self.membership.stop()
        for lane in (self._world.reads, self._world.writes, self._world.background, self._world.control):
            lane.close(1.0)

    # Its parts

    def _reserve(self, stamp: int) -> int:
        """Note that stamps may come up to a while after `stamp`; return up to where."""
        ceiling = stamp + (RESERVE_MS << MS_SHIFT)
        self.state.reserve(ceiling)
        return ceiling

    def _make_parts(self, cluster_map: ClusterMap, slot: int) -> None:
        engine, settings, world, pace = self._engine, self._settings, self._world, self._pace
        self.slot = slot
        replica = self._replica = Replica(engine, self.state, slot, cluster_map)
        self.parties = Parties(slot, engine.identity.store_id, self._joining.life, self.membership)
        self.parties.when_fenced.append(self.membership.stand_back)
        self._node_peers = NodePeers(replica, self.membership, self.parties, world, pace)
        self.peers = world.peers(self._node_peers)
        self.hints = world.hints(HintFiles(world.disk, settings.hints_bytes_max, world.log))
        self.datasets = Datasets(replica, self.state, self.membership, world.control)

        def expired(dataset: str) -> int:
            return replica.tree(dataset).expired()

        self.coordinator = Coordinator(
            slot, self.membership, self.peers, engine.clock, self.hints, expired=expired,
            brings_reads=world.brings_reads, log=world.log,
        )  # fmt: skip
        self._node_peers.coordinator = self.coordinator
        self.handoff = Handoff(
            self.hints, self.membership, self.peers, self.coordinator, replica.datasets, world.log,
            pace.hints_s,
        )  # fmt: skip
        self.anti_entropy = AntiEntropy(
            slot, self.membership, self.peers, engine.clock, expired, pace.grace_s,
            rows_s_max=settings.move_rows_s, may_go_on=self._check_lease,
        )  # fmt: skip
        self.moves = Moves(
            replica, self.state, self.membership, self.peers, world, self.datasets.make, pace.step_s,
            settings.move_rows_s,
        )  # fmt: skip
        self.mending = Mending(replica, self.peers, world.background, world.log, pace.mend_s, pace.settled_s)
        self.answers = PeerAnswers(
            replica, self.coordinator, self.membership, self.parties, world, self.how_it_is,
            self.datasets.make, self._node_peers.ago_s,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Return the node's name, which its data may know better than the settings."""
        return self._joining.name

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
        agreed = self.state.ranges("default", cluster_map.partitions).agreed
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
            agreed=int((agreed[held] > 0).sum()),
            rows_copied=self.moves.rows_copied,
            damaged=self.mending.damaged,
            mended=self.mending.mended,
            hints_dropped=self.hints.dropped_rows,
            life=self.parties.life,
        )

    # Background work

    def _follow_datasets(self) -> None:
        self._tasks.append(asyncio.ensure_future(self.datasets.follow()))
        self._tasks = [task for task in self._tasks if not task.done()]

    async def _compare_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._settings.repair_interval_s)
            try:
                await self.compare(rest=REST)
            except KvmetaError as error:
                self._log.warning("anti-entropy waits", reason=str(error))
            except Exception as error:  # noqa: BLE001 - the next round comes
                self._log.fault("anti-entropy", error)

    async def compare(self, dataset: str = "", rest: float = 0.0) -> Report:
        """Compare what this node is the first owner of: of one dataset, by its name on nodes, or of all."""
        self._check_lease()
        total = Report()
        for name in [dataset] if dataset else self.replica.datasets():
            try:
                report = await self.anti_entropy.compare(name, rest)
            except NotFoundError:
                if dataset:
                    raise
                continue  # dropped meanwhile
            total.partitions += report.partitions
            total.rows += report.rows
            total.skipped += report.skipped
        return total

    def _check_lease(self) -> None:
        if self.membership.lease_left_s() <= 0:
            raise UnavailableError("this node holds no lease, for etcd does not answer; try again later")
