"""What must hold of a cluster, looked at from outside as things happen, by its newest map.

A violation is noted, not raised: whoever happens to call shall not take it for an error of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, LOW, VERSION
from kvmeta.version import TOMBSTONE
from kvmeta_server.cluster.cluster_map import COPYING, STABLE, SWITCHED, ClusterMap
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.seams import Hint
from kvmeta_server.simulator.history import Floor, History, Key, Sent
from kvmeta_server.simulator.node import SimulatedNode
from kvmeta_server.simulator.workload import DATASET

Rows = NDArray[np.uint64]


class Checks:
    """The checks of one seed; `map` is the newest, `nodes` those that are not gone for good."""

    def __init__(self, history: History, nodes: Mapping[str, SimulatedNode], partitions: int) -> None:
        self._history = history
        self._nodes = nodes
        self._partitions = partitions
        self.map: ClusterMap | None = None
        self.violations: list[str] = []
        self._taken: set[tuple[int, bytes]] = set()  # by whom which IDs and versions

    def adopt(self, now: ClusterMap) -> None:
        """Take a new map over, and look at the step to it."""
        before, self.map = self.map, now
        addresses = [member.address for member in now.members if member.address]
        if len(addresses) != len(set(addresses)):
            self.violations.append(f"epoch {now.epoch}: two members have one address: {addresses}")
        if before is not None:
            self.step(before, now)

    def acknowledged(self, node: Node, rows: Rows, sent: Sequence[Sent], last: int) -> None:
        """Look at rows as they are acknowledged, by their node's map and by the newest.

        `last`: the version of the write's last attempt.
        """
        now = node.membership.current
        for partition, each in zip(now.partition_of(rows[:, HIGH]).tolist(), sent, strict=True):
            if each.version == last and now.changed[partition] > each.epoch:  # earlier attempts were in time
                self.violations.append(
                    f"partition {partition} is acknowledged as of epoch {each.epoch}, and the node knows "
                    f"that it changed at {int(now.changed[partition])}"
                )
        keys = (row[: LOW + 1].tobytes() for row in rows)
        self.held({key: Floor(each.version) for key, each in zip(keys, sent, strict=True)})

    def held(self, floors: dict[Key, Floor]) -> None:
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
            [each.absent or self._history.may_be_gone(key, each.version) for key, each in floors.items()]
        )
        for each in cluster_map.members:
            reads = (readers == each.slot).any(axis=1)
            node = self._nodes.get(each.name)
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
            self.violations.append(  # whoever called shall not take it for its own
                f"epoch {cluster_map.epoch}: a read quorum of partition {int(partitions[i])} may miss "
                f"{list(floors)[i].hex()}, acknowledged with {int(least[i])}: {int(holders[i])} of "
                f"{int(count[i])} hold it"
            )

    def step(self, before: ClusterMap, now: ClusterMap) -> None:
        """Note where a partition goes on and a quorum of its owners may not know of the step before."""
        epochs = {
            node.slot: self._nodes[node.name].epoch for node in before.members if node.name in self._nodes
        }
        switched = (before.phase == COPYING) & (now.phase == SWITCHED)
        finished = (before.phase == SWITCHED) & (now.phase == STABLE)
        for partition in np.flatnonzero(switched | finished).tolist():
            owners = [slot for slot in before.owners[partition].tolist() if slot != NOBODY]
            write = min(before.write_quorum, len(owners))
            changed = int(before.changed[partition])
            ignorant = [slot for slot in owners if epochs.get(slot, changed) < changed]
            if len(ignorant) >= min(write, len(owners) - write + 1):
                self.violations.append(
                    f"epoch {now.epoch}: partition {partition} goes on, and owners {ignorant} of {owners} "
                    f"do not know of epoch {changed}"
                )

    def took(self, slot: int, rows: Rows) -> None:
        """Note that a node took rows: a hint of them is done with, whatever becomes of that node."""
        self._taken.update((slot, row[: VERSION + 1].tobytes()) for row in rows)

    def hinted(self, node: Node, slot: int, hints: list[Hint]) -> None:
        """Look at hints that count as taken: who they were for has them, or else whoever owns them now.

        What some owner promised not to take any more need not be taken: it was never acknowledged.
        """
        promised = np.zeros(self._partitions, np.uint64)
        for each in self._nodes.values():
            if each.life is not None:
                ranges = each.life.state.ranges(DATASET, self._partitions)
                promised = np.maximum(promised, ranges.promised)
        members = node.membership.current.members
        target = self._nodes.get(next((each.name for each in members if each.slot == slot), ""))
        for rows in (hint.rows for hint in hints if hint.dataset == DATASET):
            partitions = node.membership.current.partition_of(rows[:, HIGH])
            open_ = rows[:, VERSION] > promised[partitions]
            open_ &= np.array([(slot, row[: VERSION + 1].tobytes()) not in self._taken for row in rows])
            if target is not None and target.engine is not None:
                held = target.engine.tree(DATASET).held(np.ascontiguousarray(rows[:, : LOW + 1])).versions
                open_ &= held < rows[:, VERSION]
            self.held({row[: LOW + 1].tobytes(): Floor(int(row[VERSION])) for row in rows[open_]})

    def equal(self) -> bool:
        """Return whether the replicas of every partition are equal by digest."""
        cluster_map = self.map
        assert cluster_map is not None
        cut, purged = (1 << 64) - 1, np.zeros(self._partitions, np.uint64)
        lives = [node.life for node in self._nodes.values() if node.life]
        for life in lives:
            purged = np.maximum(purged, life.state.ranges(DATASET, self._partitions).agreed)
        digests = {
            life.slot: life.replica.digests(DATASET, range(self._partitions), cut, purged, 0, promise=False)[
                0
            ]
            for life in lives
        }
        for partition, owners in enumerate(cluster_map.owners.tolist()):
            if any(slot != NOBODY and slot not in digests for slot in owners):
                return False  # the map changed meanwhile
            told = [digests[slot][partition] for slot in owners if slot != NOBODY]
            if any((each != told[0]).any() for each in told[1:]):
                return False
        return True
