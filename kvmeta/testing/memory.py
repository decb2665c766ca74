"""The engine's twin in memory: the same commits, log records and views, over a disk that a simulator owns.

What it leaves out is files: no runs, no merges, no mark. Rows lie in the log and in memtables; where the real
engine rewrites runs, the twin appends a tree's remaining rows to the log and marks what is before as void.
It passes the contract suite, so what holds over it holds over the real one as far as that suite goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvmeta.embedded import EmbeddedStore, EmbeddedVolumes
from kvmeta.engine import load as bulk
from kvmeta.engine import wal
from kvmeta.engine.damage import Lost
from kvmeta.engine.distinct import Distinct
from kvmeta.engine.kernels.layout import VERSION
from kvmeta.engine.manifest import Change, Manifest, TreeRecord
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.recovery import Identity
from kvmeta.engine.rocks import Batch
from kvmeta.engine.state import DEFAULT_DATASET, State, Stretches
from kvmeta.engine.tree import Tree
from kvmeta.engine.wal import Position
from kvmeta.engine.window import HASH_MAX, merged_rows, within
from kvmeta.errors import KvmetaError
from kvmeta.version import HybridClock

Rows = NDArray[np.uint64]
_PATH = Path("memory")
OPTIONS = EngineOptions(batch_rows_max=256, memtable_rows_max=256, group_rows_max=256)


@dataclass
class MemoryDisk:
    """What outlives an engine: its log and its manifest, in RocksDB's place.

    `fail` is asked at each sync: an error that it returns is raised, and whether what was being written is
    there after that is for `keep_failed` to say.
    """

    store_id: bytes = bytes(16)
    manifest: dict[bytes, bytes] = field(default_factory=dict)
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    fail: Callable[[], KvmetaError | None] = lambda: None
    keep_failed: Callable[[], bool] = lambda: False
    _unsynced: Batch = field(default_factory=Batch)

    def write(self, batch: Batch) -> None:
        """Take a batch, not durably."""
        self._unsynced = batch

    def sync(self) -> None:
        """Make what was written durable."""
        batch, self._unsynced = self._unsynced, Batch()
        error = self.fail()
        if error is None or self.keep_failed():
            for key, value in batch.manifest.items():
                if value is None:
                    self.manifest.pop(key, None)
                else:
                    self.manifest[key] = value
            self.records += batch.wal
        if error is not None:
            raise error


class MemoryEngine(State):
    """An engine over a `MemoryDisk`; opened again on the same disk, it is the same store."""

    def __init__(
        self,
        disk: MemoryDisk | None = None,
        clock: HybridClock | None = None,
        options: EngineOptions = OPTIONS,
    ) -> None:
        super().__init__(_PATH, options, clock)
        self.disk = self._log = disk or MemoryDisk()
        self.background = MemoryBackground(self)
        self._identify(Identity(self.disk.store_id))
        self._recover()

    def _recover(self) -> None:
        made = bool(self.disk.manifest)
        self.manifest = Manifest.read(self.disk.manifest, _PATH) if made else Manifest()
        for number, dataset in self.manifest.datasets.items():
            self.trees[number] = Tree(dataset, self.manifest.trees[number], (), self.clock, self.options)
        position = self.manifest.head.anchor
        for record in wal.replay(self.disk.records, position, _PATH):
            tree = self.trees.get(record.dataset)  # None: the dataset was dropped since
            if tree is not None and record.position.sequence > tree.record.flushed:
                self._insert(tree, record.rows, position)
            position = record.position
        self._commit_from(position, self.options.group_rows_max)
        self.create_dataset(DEFAULT_DATASET, exist_ok=True)

    def _insert(self, tree: Tree, rows: Rows, before: Position) -> None:
        self._fit(tree, len(rows))
        tree.insert(rows, before, 0)
        self.clock.observe(int(rows[:, VERSION].max()))

    def _fit(self, tree: Tree, n: int) -> None:
        if not tree.reserve(n):
            tree.freeze(max(n, tree.rows))  # twice as many each time, so that there are few

    def _make_room(self, tree: Tree, n: int) -> None:
        self.check_writable()
        self.check_tree(tree)
        self._fit(tree, n)

    def load(self, tree: Tree, batches: Iterable[bulk.Columns]) -> int:
        """Bulk-load `batches`; return the rows read. Visible whole when it returns, or not at all."""
        self.check_writable()
        columns = list(batches)
        if columns:
            ids, locations = (np.concatenate(column) for column in zip(*columns, strict=True))
            rows = Distinct.of(ids, locations, self.keys, last=True).rows
            rows[:, VERSION] = self.clock.stamp()
            self.ingest(tree, rows)
        return sum(len(ids) for ids, _ in columns)

    def ingest(self, tree: Tree, rows: Rows) -> None:
        """Install rows with versions of their own, durably."""
        self.check_writable()
        self.check_tree(tree)
        if len(rows):
            with self._committer.lock:
                self._write_rows(tree, rows, tree.record)
                self._insert(tree, rows, self._committer.position)

    def rewrite(self, tree: Tree, kept: Callable[[Rows], Rows], purge: int = 0) -> None:
        """Keep of a tree's merged rows what `kept` returns, without tombstones below `purge`, durably."""
        self.check_writable()
        with self._committer.lock:
            before = self._committer.position
            rows = kept(merged_rows(tree.view, 0, HASH_MAX, purge=purge))
            record = replace(tree.record, flushed=before.sequence)
            self._write_rows(tree, rows, record)
            tree.freeze(len(rows))
            if len(rows):
                tree.reserve(len(rows))
                tree.insert(rows, before, 0)
            tree.frozen = ()
            tree.replace_runs(record, None)  # type: ignore[arg-type]  # it has no runs to open

    def _write_rows(self, tree: Tree, rows: Rows, record: TreeRecord) -> None:
        """Append rows to the log, together with a tree's record."""
        with self._manifest_lock, self.all_or_stop():
            position = self._committer.position
            prepared = self.manifest.prepare(Change(trees={tree.dataset.number: record}))
            if len(rows):
                position, value = wal.encode(position, tree.dataset.number, wal.APPLY, rows)
                prepared.batch.wal.append((wal.key(position.sequence), value))
            self._durably(prepared.batch)
            self.manifest.accept(prepared)
            self._committer.position = self._acknowledged = position

    def log_bytes(self) -> int:
        """Return the bytes of the log."""
        return sum(len(value) for _, value in self.disk.records)

    def refresh(self) -> None:
        """Do nothing: there is one handle."""

    def close(self) -> None:
        """Close. Idempotent."""
        self._closed = True

    def _write_mark(self) -> None:
        """Do nothing: the disk keeps what it took."""


class MemoryBackground:
    """What of the background work there is without files."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.lock = threading.RLock()
        self._engine = engine

    def notify(self) -> None:
        """Do nothing: nobody waits."""

    def wait_for_room(self, tree: Tree) -> None:
        """Do nothing: there is always room."""

    def forget(self, tree: Tree) -> None:
        """Do nothing: no merge is under way."""

    def quarantine(self, tree: Tree) -> None:
        """Do nothing: nothing is damaged."""

    def flush(self) -> None:
        """Do nothing but say whether one may."""
        self._engine.check_writable()

    def compact(self, *, discard: bool = False, progress: Callable[[float], None] | None = None) -> None:
        """Drop what is overwritten, and the tombstones that may go."""
        for tree in list(self._engine.trees.values()):
            self._engine.rewrite(tree, lambda rows: rows, tree.purge_below)

    def give_up(self, tree: Tree, lost: Lost) -> bool:
        """Do nothing: nothing is damaged."""
        return False

    def drop(self, tree: Tree, stretches: Stretches) -> None:
        """Drop the rows whose high halves lie in `stretches`."""
        outside = np.array(stretches, np.uint64)
        self._engine.rewrite(tree, lambda rows: rows[~within(rows, outside)])


class MemoryStore(EmbeddedStore):
    """The public contract over the twin."""

    def __init__(self, engine: MemoryEngine | None = None) -> None:
        self.engine = engine or MemoryEngine()
        self.volumes = EmbeddedVolumes(self.engine)
