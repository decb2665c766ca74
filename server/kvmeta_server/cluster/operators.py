"""What a node answers to operators: ClusterService. Reads what this node knows, changes the map in etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from kvmeta.errors import InputError, UnavailableError
from kvmeta.v1 import cluster_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.backend import Named
from kvmeta_server.cluster.cluster_map import ClusterMap, copies
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.recovery import Recovery
from kvmeta_server.cluster.seams import PeerError


class Operators:
    """The answers of one node. `local_name` returns under which name nodes hold a dataset."""

    def __init__(self, node: Node, local_name: Callable[[Named], Awaitable[str]]) -> None:
        self._node = node
        self._local_name = local_name

    async def get_status(self, _: Any) -> pb.GetStatusResponse:
        """Return the cluster as this node sees it."""
        node, cluster_map = self._node, self._node.membership.current
        live = node.membership.live()
        told = await asyncio.gather(*(self._ask(each.slot) for each in cluster_map.members))
        members = []
        for each, (state, clock_ms) in zip(cluster_map.members, told, strict=True):
            member = pb.Member(
                slot=each.slot, name=each.name, address=each.address, zone=each.zone, weight=each.weight,
                state=each.state, live=each.slot in live, answered=state is not None,
                owned=int((cluster_map.owners == each.slot).sum()),
                incoming=int(cluster_map.incoming(each.slot).sum()),
                waiting=sum(state.hints.get(each.name, 0) for state, _ in told if state is not None),
            )  # fmt: skip
            if state is not None:
                member.epoch, member.leftover, member.rows_copied = (
                    state.epoch,
                    state.leftover,
                    state.rows_copied,
                )
                member.hinted, member.agreed = sum(state.hints.values()), state.agreed
                member.damaged, member.mended = state.damaged, state.mended
                member.hints_dropped = state.hints_dropped
                member.clock_ms = clock_ms
            members.append(member)
        return pb.GetStatusResponse(
            name=cluster_map.name, cluster=cluster_map.cluster_id, epoch=cluster_map.epoch,
            partitions=cluster_map.partitions, replicas=cluster_map.replicas,
            write_quorum=cluster_map.write_quorum, members=members, moving=int(cluster_map.unplaced.sum()),
            etcd=node.membership.answers, unavailable=self._unavailable(cluster_map),
            refusal=node.membership.refusal, fenced=node.parties.fenced,
        )  # fmt: skip

    async def change_members(self, request: pb.ChangeMembersRequest) -> pb.ChangeMembersResponse:
        """Change the members."""
        if self._node.membership.refusal:
            raise UnavailableError(self._node.membership.refusal)
        if self._node.membership.lease_left_s() <= 0:
            raise UnavailableError(
                "etcd does not answer, and the map is changed only there; reads and writes go on. Try again "
                "later"
            )
        changed = await self._node.membership.change_map(lambda held: self._changed(held, request))
        return pb.ChangeMembersResponse(epoch=changed.epoch, moves=copies(changed))

    async def repair(self, request: pb.RepairRequest) -> pb.RepairResponse:
        """Compare what this node is the first owner of, now."""
        name = await self._local_name(Named(request.dataset)) if request.dataset else ""
        report = await self._node.compare(name)
        return pb.RepairResponse(partitions=report.partitions, rows=report.rows, skipped=report.skipped)

    async def recover(self, request: pb.RecoverRequest) -> pb.RecoverResponse:
        """Say what a recovery does, or do it."""
        node = self._node
        recovery = Recovery(node.slot, node.membership, node.peers)
        plan = await recovery.plan()
        if plan is None:
            return pb.RecoverResponse(epoch=node.membership.current.epoch)
        if request.plan:
            if request.plan != plan.told.plan:
                raise UnavailableError("what is to be done has changed since it was shown; look again")
            await recovery.apply(plan)
            plan.told.done = True
        return plan.told

    def _changed(self, held: ClusterMap, request: pb.ChangeMembersRequest) -> ClusterMap:
        if request.change == pb.CHANGE_REBALANCE:
            planned = held.replanned()
            return planned if planned.moving.any() else held
        node = held.member(request.node)
        if request.change == pb.CHANGE_WEIGHT:
            return held.with_member(node.name, weight=request.weight)
        if request.change == pb.CHANGE_UNDRAIN:
            if node.state != "draining":
                raise InputError(f"node {node.name!r} is {node.state}, not draining")
            return held.with_member(node.name, state="active")
        if request.change not in (pb.CHANGE_DRAIN, pb.CHANGE_REMOVE):
            raise InputError(
                f"change: expected DRAIN, REMOVE, REBALANCE, WEIGHT or UNDRAIN, got {request.change}"
            )
        others = [each for each in held.members if each.state == "active" and each.name != node.name]
        if not others:
            raise InputError(f"node {node.name!r} is the last one; there is nowhere to move what it holds")
        going = [each.name for each in held.members if each.state != "active" and each.name != node.name]
        if request.change == pb.CHANGE_DRAIN:
            if node.state == "draining":
                return held
            if going and not request.force:
                raise InputError(
                    f"node {going[0]!r} is on its way out; wait until it is gone (kvmeta cluster moves), or "
                    "say --force"
                )
            if len(others) < held.replicas and not request.force:
                raise InputError(
                    f"without {node.name!r} there are {len(others)} nodes for {held.replicas} replicas; "
                    "add one first, or say --force"
                )
            return held.with_member(node.name, state="draining")
        if self._node.peers.likely(node.slot) and not request.force:
            raise InputError(f"node {node.name!r} answers; drain it instead, or say --force")
        lost = self._lost_without(held, node.slot)
        if lost and not request.force:
            raise InputError(
                f"{lost} partitions have too few other live replicas to copy from; bring their nodes back "
                "first. --force gives up what only the removed node holds"
            )
        return held.with_member(node.name, state="removed")

    def _lost_without(self, held: ClusterMap, slot: int) -> int:
        """Return how many partitions could not be read by quorum any more."""
        able = {
            each.slot for each in held.members if each.slot != slot and self._node.peers.likely(each.slot)
        }
        count = np.isin(held.owners, list(able)).sum(axis=1)
        mine = (held.owners == slot).any(axis=1)
        return int((mine & (count < held.read_quorum)).sum())

    def _unavailable(self, cluster_map: ClusterMap) -> int:
        likely = [each.slot for each in cluster_map.members if self._node.peers.likely(each.slot)]
        count = (np.isin(cluster_map.owners, likely) & (cluster_map.owners != NOBODY)).sum(axis=1)
        need = np.maximum(cluster_map.write_quorums[0], cluster_map.read_quorum)
        return int((count < need).sum())

    async def _ask(self, slot: int) -> tuple[peer.StateResponse | None, int]:
        """Return a node's state, and by how many ms its clock was ahead in the middle of the question."""
        if slot == self._node.slot:
            return self._node.how_it_is(), 0
        clock = self._node.replica.engine.clock
        asked_ms = clock.now_ms()
        try:
            state = await self._node.peers.state(slot)
        except PeerError:
            return None, 0
        return state, int(state.unix_ms) - (asked_ms + clock.now_ms()) // 2
