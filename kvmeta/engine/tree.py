"""A dataset's tree: one mutable memtable, frozen ones that wait for their flush, and runs.

State changes happen under the tree's lock and end in a new view; reads take the view and no lock. The tree
does no I/O of its own: the engine writes what the tree then takes over.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.manifest import DatasetRecord, TreeRecord
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.run import Run, SegmentFiles
from kvmeta.engine.view import ColdReads, Found, View
from kvmeta.engine.wal import Position
from kvmeta.version import VERSION_MAX, HybridClock, expiry

Rows = NDArray[np.uint64]
FIRST_ROWS = 256
"""Rows that a memtable has room for at first: a store may have thousands of datasets that hold little."""
GROWTH = 4


class Tree:
    """The LSM tree of one dataset.

    `purge_below`: tombstones of this version and later are kept by merges, whatever else allows them to go.
    """

    def __init__(
        self,
        dataset: DatasetRecord,
        record: TreeRecord,
        runs: tuple[Run, ...],
        clock: HybridClock,
        options: EngineOptions,
    ) -> None:
        self.dataset = dataset
        self.record = record
        self.runs = runs
        self._memtable_rows = options.memtable_rows_max
        self._room = self._memtable_rows  # up to how many rows the mutable memtable may grow
        self.mutable = Memtable(min(FIRST_ROWS, self._room))
        self.frozen: tuple[Memtable, ...] = ()  # oldest first
        self.cold = ColdReads()
        self.purge_below = 0 if options.keep_tombstones else VERSION_MAX
        self._clock = clock
        self._lock = threading.Lock()
        self.view = View((), ())
        self.upper_runs = 0  # those that await a merge
        self._publish()

    @property
    def rows(self) -> int:
        """Return the rows of all sources, tombstones and what is overwritten among them."""
        view = self.view
        held = sum(memtable.count for memtable in view.memtables)
        return held + sum(segment.record.rows for segment in view.segments)

    def lookup(self, mixed: Rows) -> Found:
        """Return the largest entries of `mixed` (u8[n, 2]) as of now."""
        return self.view.lookup(mixed, self.cold, self.expired())

    def held(self, mixed: Rows) -> Found:
        """Return what is held of `mixed`, tombstones and expired entries included."""
        return self.view.lookup(mixed, self.cold, raw=True)

    def expired(self) -> int:
        """Return the version below which entries have expired; 0 = none."""
        return expiry(self.dataset.ttl_s, self._clock.now_ms())

    def reserve(self, n: int) -> bool:
        """Let `n` rows fit the mutable memtable, which grows with what it holds; return whether they do.

        Called by one writer at a time. Who reads goes on with the smaller one, which stays as it is.
        """
        wanted = self.mutable.count + n
        if wanted > self._room:
            return False
        if wanted > self.mutable.capacity:
            grown = self.mutable.grown(min(self._room, max(wanted, GROWTH * self.mutable.capacity)))
            with self._lock:
                self.mutable = grown
                self._publish()
        return True

    def insert(self, rows: Rows, before: Position, appended_rows: int) -> None:
        """Publish rows of the WAL record after `before`; they fit. Called by one writer at a time."""
        self.mutable.insert(rows, before, appended_rows)

    def freeze(self, room: int = 0) -> None:
        """Set the mutable memtable aside for its flush and start an empty one, of at least `room` rows."""
        with self._lock:
            full = self.mutable.count > self._room // 2  # the next one will be, too
            if self.mutable.count:
                self.frozen = (*self.frozen, self.mutable)
            elif room <= self._room:
                return
            self._room = max(room, self._memtable_rows)
            self.mutable = Memtable(self._room if full else max(room, min(FIRST_ROWS, self._room)))
            self._publish()

    def replace_runs(
        self, record: TreeRecord, files: SegmentFiles, flushed: Memtable | None = None
    ) -> list[int]:
        """Take over a durable `record`, drop the `flushed` memtable; return the removed segments' numbers."""
        known = {segment.record.number: segment for run in self.runs for segment in run.segments}
        runs = tuple(Run.open(run, files, known) for run in record.runs)
        kept = {segment.record.number for run in runs for segment in run.segments}
        with self._lock:
            self.record, self.runs = record, runs
            if flushed is not None:
                self.frozen = tuple(memtable for memtable in self.frozen if memtable is not flushed)
            self._publish()
        return sorted(known.keys() - kept)

    def unflushed_before(self, without: Memtable | None = None) -> Position | None:
        """Return the WAL position before the oldest record not in a run (`without` counted as flushed)."""
        with self._lock:
            held = [m.before for m in (*self.frozen, self.mutable) if m is not without and m.before]
            return min(held, default=None)

    def oldest_memtable(self) -> Memtable | None:
        """Return the memtable with the oldest rows that are in no run yet."""
        with self._lock:
            return next((memtable for memtable in (*self.frozen, self.mutable) if memtable.count), None)

    def idle_runs(self, *, damaged: bool = False) -> list[Run]:
        """Return the runs fit for a merge: in no merge under way and, unless `damaged`, not damaged."""
        busy = {number for merge in self.record.merges for number in (*merge.inputs, merge.output)}
        return [
            run for run in self.runs if run.record.number not in busy and (damaged or not run.quarantined)
        ]

    def _publish(self) -> None:
        self.view = View((self.mutable, *reversed(self.frozen)), self.runs)
        self.upper_runs = len([run for run in self.idle_runs() if not run.record.bottom])
