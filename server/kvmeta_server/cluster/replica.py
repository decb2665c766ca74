"""A replica: a node's own part of each partition, as the coordinators of all nodes ask for it. No loop.

Every answer depends on the sender's epoch: what was planned on an older map of a partition is fenced.
`adopt` returns only when nothing is under way that was let in under the map before; so whoever knows that a
replica has adopted an epoch knows that it acknowledges nothing older.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.commit import APPLY, Write
from kvmeta.engine.kernels.digest import digest
from kvmeta.engine.kernels.layout import HIGH, VERSION
from kvmeta.engine.state import State as Store
from kvmeta.engine.tree import Tree
from kvmeta.engine.window import merged_rows, window_end
from kvmeta.errors import InputError, UnavailableError
from kvmeta.protocol.codes import Outcome, State
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.rows import BUCKETS, Applied, Bound, Fetched, Page, Rows, Words, outcomes_of


class Replica:
    """A node's replica of all it owns."""

    def __init__(self, engine: Store, state: NodeState, slot: int, cluster_map: ClusterMap) -> None:
        self.engine = engine
        self.state = state
        self.slot = slot
        self._map = cluster_map
        self._owned = cluster_map.held_by(slot)
        self._held = self._owned & ~state.leftover(cluster_map.partitions)
        self._under_way: dict[int, int] = {}  # calls by the epoch they were let in under
        self._changed = threading.Condition()
        self.persisted = cluster_map.epoch
        """The epoch of the map on disk, under which alone this replica works."""

    @property
    def map(self) -> ClusterMap:
        """Return the map that new work is held against."""
        return self._map

    def holding(self) -> tuple[ClusterMap, NDArray[np.bool_]]:
        """Return the map and bool[P]: of which partitions this node holds what it is asked for."""
        with self._changed:
            return self._map, self._held

    def adopt(self, cluster_map: ClusterMap) -> None:
        """Work under a newer map from now on; return when it is on disk and nothing older is under way."""
        with self._changed:
            if cluster_map.epoch < self._map.epoch or cluster_map.epoch <= self.persisted:
                return
            owned = cluster_map.held_by(self.slot)
            lost = self._owned & ~owned
            if lost.any():
                self.state.add_leftover(lost)
            held = owned & ~self.state.leftover(cluster_map.partitions)
            for dataset in self.datasets():
                self._allow_purge(dataset, held)  # before there is anything that it must not purge
            self._owned, self._held, self._map = owned, held, cluster_map
            while any(epoch < cluster_map.epoch for epoch in self._under_way):
                self._changed.wait()
        self.state.set_map(cluster_map)
        self.persisted = max(self.persisted, cluster_map.epoch)

    def clean(self, gone: NDArray[np.bool_]) -> None:
        """Note that what was left of partitions (bool[P]) is dropped: from now on they may be taken again."""
        with self._changed:
            held = self._owned & ~(self.state.leftover(len(gone)) & ~gone)
            for dataset in self.datasets():
                self._allow_purge(dataset, held)
            self.state.clear_leftover(gone)
            self._held = held

    def apply(self, dataset: str, epoch: int, rows: Rows, bound: Bound = Bound.PROMISED) -> Applied:
        """Merge rows u8[n, 6] (distinct IDs) into what is held, durably.

        `epoch` is the sender's; 0 lets everything in that this node owns. Rows that are not held are refused
        up to `bound`: a promise, or what all owners agreed on.
        """
        if len(rows):
            self._check_clock(int(rows[:, VERSION].max()), "rows are stamped")
        with self._let_in() as (cluster_map, held):
            partitions = cluster_map.partition_of(rows[:, HIGH])
            fenced = _fenced(cluster_map, held, partitions, epoch)
            outcomes, versions = np.full(len(rows), Outcome.FENCED, np.uint8), np.zeros(len(rows), np.uint64)
            inside = np.flatnonzero(~fenced)
            tree = self.tree(dataset)
            ranges = self.state.ranges(dataset, cluster_map.partitions)
            size = self.engine.options.batch_rows_max
            for start in range(0, len(inside), size):
                part = inside[start : start + size]
                mine = rows if len(part) == len(rows) else rows[part]
                up_to = ranges.agreed_of if bound is Bound.AGREED else ranges.promised_of
                promised = None if bound is Bound.NONE else partial(up_to, partitions[part])
                write = Write(tree, APPLY, mine, promised=promised)
                self.engine.commit(write)
                assert write.outcome is not None
                assert write.held is not None
                outcomes[part] = outcomes_of(write.outcome)
                refused = outcomes[part] == Outcome.REFUSED
                versions[part] = np.where(refused, ranges.promised[partitions[part]], write.held.versions)
            return Applied(outcomes, versions)

    def fetch(self, dataset: str, epoch: int, mixed: Words, *, versions_only: bool = False) -> Fetched:
        """Return what is held of mixed IDs u8[n, 2], tombstones and expired entries included."""
        found = self.tree(dataset).held(mixed)
        cluster_map = self._map  # as it is after the look: what a newer one fences may have moved on
        fenced = _fenced(cluster_map, self._held, cluster_map.partition_of(mixed[:, 0]), epoch)
        states = np.where(found.failed.view(np.bool_), np.uint8(State.FAILED), np.uint8(State.ANSWERED))
        states[fenced] = State.FENCED
        return Fetched(states, found.versions, None if versions_only else found.locations)

    def rows(self, dataset: str, epoch: int, first: int, last: int, page_rows: int) -> Page:
        """Return about `page_rows` rows held from high half `first` on, and how far they go."""
        cluster_map = self._map
        ends = cluster_map.partition_of(np.array([first, last], np.uint64))
        partitions = np.arange(ends[0], ends[1] + 1)
        view = self.tree(dataset).view
        until = window_end(view, first, last, page_rows)
        page = Page(merged_rows(view, first, until), until)
        if epoch and _fenced(self._map, self._held, partitions, epoch).any():
            raise UnavailableError("asked for rows on an older map")
        return page

    def digests(
        self,
        dataset: str,
        partitions: Iterable[int],
        cut_at: int,
        purged: Words,
        expired: int,
        *,
        promise: bool,
    ) -> tuple[Words, Words]:
        """Return digests u8[m, BUCKETS] of m partitions and up to where their owners agreed u8[m].

        Rows up to version `cut_at`, without tombstones up to `purged` (u8[m]) and what has `expired`.
        """
        cluster_map = self._map
        asked = self._known(partitions)
        ranges = self.state.ranges(dataset, cluster_map.partitions)
        if promise:
            # Up to then nobody could write here: stamps above it would be refused for being so far ahead.
            self._check_clock(cut_at, "a comparison's cut lies")
            ranges.promise(asked, cut_at)
            ranges.compare(asked, cut_at)
            self.engine.settle()  # what was weighed before the promise is visible now
        tree = self.tree(dataset)
        shift = cluster_map.shift - (BUCKETS.bit_length() - 1)
        out = np.zeros((len(asked), BUCKETS), np.uint64)
        for i, partition in enumerate(asked.tolist()):
            first, last = cluster_map.stretch(partition)
            while cut_at and first <= last:
                view = tree.view
                until = window_end(view, first, last, 1 << 18)
                rows = merged_rows(view, first, until)
                digest(
                    rows, np.uint64(shift), np.uint64(partition * BUCKETS), np.uint64(cut_at),
                    purged[i], np.uint64(expired), out[i],
                )  # fmt: skip
                first = until + 1
        return out, ranges.agreed[asked]

    def agree(self, dataset: str, partitions: Iterable[int], version: int) -> None:
        """Note that all owners of partitions agreed up to `version`: tombstones up to it may go.

        Only the cut of the last comparison that this replica took part in is believed.
        """
        ranges, asked = self.state.ranges(dataset, self._map.partitions), self._known(partitions)
        if (ranges.compared[asked] != np.uint64(version)).any():
            raise UnavailableError(
                f"told of an agreement up to version {version}, which was not what was compared here last"
            )
        ranges.agree(asked, version)
        self.allow_purge(dataset)

    def _known(self, partitions: Iterable[int]) -> NDArray[np.int64]:
        """Return partitions as i8[m]; InputError where there are none of their numbers."""
        asked = np.fromiter(partitions, np.int64)
        if len(asked) and not 0 <= asked.min() <= asked.max() < self._map.partitions:
            raise InputError(f"partitions: expected 0 to {self._map.partitions - 1}, got {asked.max()}")
        return asked

    def allow_purge(self, dataset: str) -> None:
        """Let merges drop tombstones up to where the owners agreed on all that this node holds."""
        self._allow_purge(dataset, self._held)

    def _allow_purge(self, dataset: str, held: NDArray[np.bool_]) -> None:
        ranges = self.state.ranges(dataset, len(held))
        lowest = int(ranges.agreed[held].min()) if held.any() else 0
        self.engine.allow_purge(self.tree(dataset), lowest + 1 if lowest else 0)

    def tree(self, dataset: str) -> Tree:
        """Return the tree of a dataset; NotFoundError where this node does not know it yet."""
        return self.engine.tree(dataset)

    def datasets(self) -> list[str]:
        """Return the names of the datasets here."""
        return sorted(tree.dataset.name for tree in self.engine.trees.values())

    @contextmanager
    def _let_in(self) -> Iterator[tuple[ClusterMap, NDArray[np.bool_]]]:
        with self._changed:
            cluster_map, held = self._map, self._held
            self._under_way[cluster_map.epoch] = self._under_way.get(cluster_map.epoch, 0) + 1
        try:
            yield cluster_map, held
        finally:
            self._let_out(cluster_map.epoch)

    def _let_out(self, epoch: int) -> None:
        with self._changed:
            self._under_way[epoch] -= 1
            if not self._under_way[epoch]:
                del self._under_way[epoch]
            self._changed.notify_all()

    def _check_clock(self, version: int, what: str) -> None:
        ahead_ms = self.engine.clock.ahead_ms(version)
        if ahead_ms > self._map.max_skew_ms:
            raise UnavailableError(
                f"{what} {ahead_ms / 1000:.0f} s ahead of this node's clock, and at most "
                f"{self._map.max_skew_ms / 1000:g} s are taken; set the clocks right (chrony, ntpd)"
            )


def _fenced(
    cluster_map: ClusterMap, held: NDArray[np.bool_], partitions: NDArray[np.int64], epoch: int
) -> NDArray[np.bool_]:
    fenced: NDArray[np.bool_] = ~held[partitions]
    if epoch:
        fenced |= cluster_map.changed[partitions] > np.uint64(epoch)
    return fenced
