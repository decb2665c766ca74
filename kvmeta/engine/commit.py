"""Group commit: concurrent writes share one WAL batch and one fsync, and nothing is visible before it.

Each caller queues its write and takes the commit lock. Whoever gets it first commits all that is queued; the
others find theirs done. Writes that depend on what is held (insert, relocate) are decided in queue order,
over the visible state plus the group's own earlier writes, so their answers are true once the group is
durable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Outcome
from kvmeta.engine import wal
from kvmeta.engine.kernels.layout import LOW, VERSION, WORD3
from kvmeta.engine.kernels.merge import weigh
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.rocks import Batch
from kvmeta.engine.tree import Tree
from kvmeta.engine.view import Found, View
from kvmeta.engine.wal import Position
from kvmeta.errors import KvmetaError, NotFoundError, OutcomeUnknownError
from kvmeta.version import MOVES_MAX, TOMBSTONE, HybridClock

Rows = NDArray[np.uint64]

PUT, INSERT, DELETE, RELOCATE, APPLY = "put", "insert", "delete", "relocate", "apply"


@dataclass
class Write:
    """One chunk to commit: rows u8[n, 6] with distinct IDs and no versions yet.

    `expected` (u8[n]) are a relocate's seen versions. An apply's rows bring their versions; `promised()`
    (u8[n]) says, at the commit, up to which version no row is accepted that is not held (a move of a held
    entry excepted). The commit
    fills `held` (what insert, relocate and apply found), `outcome` (u1[n], of `Outcome` for a relocate, of
    ACCEPTED … for an apply) and `error`.
    """

    tree: Tree
    kind: str
    rows: Rows
    expected: NDArray[np.uint64] | None = None
    promised: Callable[[], NDArray[np.uint64]] | None = None
    held: Found | None = None
    outcome: NDArray[np.uint8] | None = None
    version: int = 0
    error: BaseException | None = None
    done: bool = False

    @property
    def held_first(self) -> bool:
        """Return whether what is held decides what becomes of it."""
        return self.kind in (INSERT, RELOCATE, APPLY)

    def versions(self) -> NDArray[np.uint64]:
        """Return u8[n]: an insert's versions held now, its own where it took effect."""
        assert self.held is not None
        return np.where(self.held.absent(), np.uint64(self.version), self.held.versions)

    def locations(self) -> NDArray[np.uint64]:
        """Return u8[n, 3]: an insert's locations held now, its own where it took effect."""
        assert self.held is not None
        return np.where(self.held.absent()[:, None], self.rows[:, WORD3:], self.held.locations)


@dataclass
class _Group:
    """What a group will change: encoded records and the rows to publish for each."""

    position: Position
    batch: Batch = field(default_factory=Batch)
    publish: list[tuple[Tree, Rows, Position]] = field(default_factory=list)
    pending: dict[int, Memtable] = field(default_factory=dict)  # by dataset: rows decided but not yet visible


class Committer:
    """The queue of writes and the chain they are appended to.

    `append(batch, position)` must make the batch durable or raise; `make_room(tree, n)` must let `n` rows
    fit; a block under `all_or_stop()` that does not run to its end ends all writing.
    """

    def __init__(
        self,
        clock: HybridClock,
        position: Position,
        append: Callable[[Batch, Position], None],
        make_room: Callable[[Tree, int], None],
        all_or_stop: Callable[[], AbstractContextManager[None]],
        group_rows_max: int,
    ) -> None:
        self.lock = threading.Lock()
        self.position = position
        self.appended_rows = 0
        self._clock = clock
        self._append = append
        self._make_room = make_room
        self._all_or_stop = all_or_stop
        self._group_rows_max = group_rows_max
        self._queue: list[Write] = []
        self._queue_lock = threading.Lock()

    def commit(self, write: Write) -> None:
        """Return when `write` is durable and visible; raise what kept it from being so."""
        with self._queue_lock:
            self._queue.append(write)
        try:
            with self.lock:
                while not write.done:
                    group = self._take()
                    if not group:  # an interrupt hit whoever took it
                        raise OutcomeUnknownError("this write's group was interrupted; open the store again")
                    self._commit_group(group, write)
        finally:
            with self._queue_lock:  # interrupted while it waited: nobody shall commit it later
                self._queue = [each for each in self._queue if each is not write]
        if write.error is not None:
            raise write.error

    def _take(self) -> list[Write]:
        with self._queue_lock:
            rows = 0
            for i, write in enumerate(self._queue):
                rows += len(write.rows)
                if i and rows > self._group_rows_max:
                    group, self._queue = self._queue[:i], self._queue[i:]
                    return group
            group, self._queue = self._queue, []
            return group

    def _commit_group(self, writes: Sequence[Write], own: Write) -> None:
        try:
            group = _Group(self.position)
            accepted = self._with_room(writes)
            shared = len(accepted) > 1 and any(write.held_first for write in accepted)
            for write in accepted:
                self._decide(write, group, shared=shared)
            if not group.batch.wal:
                return
            with self._all_or_stop():
                self._append(group.batch, group.position)
                for tree, rows, before in group.publish:
                    tree.insert(rows, before, self.appended_rows)
                    self.appended_rows += len(rows)
                # Only now: a flush trims the WAL up to the position where no memtable holds rows.
                self.position = group.position
        except BaseException as error:  # every caller of the group must learn of it
            unknown = OutcomeUnknownError(f"this write's group was ended by {error!r}; open the store again")
            for write in writes:
                write.error = error if write is own or isinstance(error, KvmetaError) else unknown
            if not isinstance(error, Exception):
                raise
        finally:
            for write in writes:
                write.done = True

    def _with_room(self, writes: Sequence[Write]) -> list[Write]:
        """Make room in each memtable; return the writes that have it. Others get their dataset's error."""
        accepted: list[Write] = []
        for tree in {write.tree.dataset.number: write.tree for write in writes}.values():
            ours = [write for write in writes if write.tree is tree]
            try:
                self._make_room(tree, sum(len(write.rows) for write in ours))
                accepted += ours
            except NotFoundError as error:
                for write in ours:
                    write.error = error
        return accepted

    def _decide(self, write: Write, group: _Group, *, shared: bool) -> None:
        """Stamp the rows that take effect and add them to the group."""
        tree, rows, kind = write.tree, write.rows, wal.PUT
        if write.kind == INSERT:
            write.held = self._held(write, group)
            rows = rows[write.held.absent()]
        elif write.kind == RELOCATE:
            kind = wal.RELOCATE
            write.held = self._held(write, group)
            write.outcome = _judge(write)
            rows = rows[write.outcome == Outcome.RELOCATED]
            rows[:, VERSION] = write.held.versions[write.outcome == Outcome.RELOCATED] + np.uint64(1)
        elif write.kind == APPLY:
            kind = wal.APPLY
            write.held = self._held(write, group)
            write.outcome, news = _weigh(write)
            rows = rows[news]
        if not len(rows):
            return
        if write.kind == APPLY:
            self._clock.observe(int(rows[:, VERSION].max()))
        elif write.kind != RELOCATE:
            write.version = self._clock.stamp()
            rows[:, VERSION] = write.version
        if write.kind == DELETE:
            kind = wal.DELETE
            rows[:, VERSION] |= np.uint64(TOMBSTONE)
        before = group.position
        group.position, value = wal.encode(before, tree.dataset.number, kind, rows)
        group.batch.wal.append((wal.key(group.position.sequence), value))
        group.publish.append((tree, rows, before))
        if shared:
            number = tree.dataset.number
            if number not in group.pending:
                group.pending[number] = Memtable(2 * self._group_rows_max)
            group.pending[number].insert(rows, before)

    def _held(self, write: Write, group: _Group) -> Found:
        tree = write.tree
        mixed = np.ascontiguousarray(write.rows[:, : LOW + 1])
        pending = group.pending.get(tree.dataset.number)
        view = tree.view if pending is None else View((pending, *tree.view.memtables), tree.view.runs)
        if write.kind == APPLY:
            return view.lookup(mixed, tree.cold, raw=True)
        return view.lookup(mixed, tree.cold, tree.expired())


def _judge(write: Write) -> NDArray[np.uint8]:
    """Return each ID's outcome: a relocate takes effect only where the version seen is the one held."""
    assert write.held is not None
    held = write.held
    outcome = np.full(len(write.rows), Outcome.RELOCATED, np.uint8)
    outcome[held.versions & np.uint64(MOVES_MAX) == MOVES_MAX] = Outcome.EXHAUSTED
    outcome[held.versions != write.expected] = Outcome.CHANGED
    outcome[held.found == 0] = Outcome.ABSENT
    outcome[held.failed != 0] = Outcome.FAILED
    return outcome


def _weigh(write: Write) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return an apply's outcome for each row, and whether it takes effect."""
    assert write.held is not None
    n = len(write.rows)
    promised = np.zeros(n, np.uint64) if write.promised is None else write.promised()
    outcome, news = np.empty(n, np.uint8), np.empty(n, np.bool_)
    weigh(write.rows, write.held.versions, write.held.locations, promised, outcome, news)
    return outcome, news
