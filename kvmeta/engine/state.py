"""The state of an open store: its manifest, its trees, how both change, and whether writes go on.

`Engine` is a state over files, the twin in `kvmeta/testing` one in memory; `Background` works on either.
Invariants: a manifest change is durable before the view that shows it is published and before a file it no
longer names is removed; after a failed write or fsync a state takes no more writes (what failed may be
present), reads go on.

Locks, in the order they may nest: background, commit, datasets, manifest, a tree's own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvmeta import mixing
from kvmeta.engine import filenames
from kvmeta.engine import load as bulk
from kvmeta.engine.commit import Committer, Write
from kvmeta.engine.damage import Lost
from kvmeta.engine.manifest import Change, DatasetRecord, Manifest, TreeRecord
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.recovery import Identity
from kvmeta.engine.rocks import Batch
from kvmeta.engine.run import SegmentFiles
from kvmeta.engine.tree import Tree
from kvmeta.engine.wal import WAL_START, Position
from kvmeta.errors import InputError, KvmetaError, NotFoundError, ReadOnlyError, UnavailableError, os_errors
from kvmeta.version import HybridClock

Rows = NDArray[np.uint64]
Stretches = tuple[tuple[int, int], ...]
DEFAULT_DATASET = "default"


class Log(Protocol):
    """What makes batches durable: RocksDB, or a disk in memory."""

    def write(self, batch: Batch) -> None:
        """Take a batch, not durably."""

    def sync(self) -> None:
        """Make what was written durable."""


class Work(Protocol):
    """The background work of a state: flushes and merges."""

    lock: threading.RLock

    def notify(self) -> None:
        """Wake whoever waits for work or for room."""

    def wait_for_room(self, tree: Tree) -> None:
        """Return when the tree has room for another write."""

    def forget(self, tree: Tree) -> None:
        """Drop what is under way for a tree. The caller holds `lock`."""

    def quarantine(self, tree: Tree) -> None:
        """Note durably what is damaged of a tree."""

    def flush(self) -> None:
        """Write every memtable as a run."""

    def compact(self, *, discard: bool = False, progress: Callable[[float], None] | None = None) -> None:
        """Flush, then merge all runs of every dataset into one."""

    def drop(self, tree: Tree, stretches: Stretches) -> None:
        """Rewrite the tree without the rows whose high halves lie in `stretches`."""

    def give_up(self, tree: Tree, lost: Lost) -> bool:
        """Write a segment anew without what is lost of it; return False where that has to wait."""


def another_dataset(name: str) -> NotFoundError:
    """Return the error for a dataset that was dropped, where there is another of its name."""
    return NotFoundError(
        f"dataset {name!r} was dropped, and the one of that name now is another; ask the store for it"
    )


class State(ABC):
    """An open store. Whoever opens it sets what is declared here and not set."""

    background: Work
    identity: Identity
    files: SegmentFiles
    keys: NDArray[np.uint64]
    """The round keys of the ID bijection."""
    _committer: Committer

    def __init__(
        self, path: Path, options: EngineOptions, clock: HybridClock | None, *, read_only: bool = False
    ) -> None:
        self.path = path
        self.options = options
        self.read_only = read_only
        self.clock = clock or HybridClock()
        self.trees: dict[int, Tree] = {}
        self.manifest = Manifest()
        self._stopped: KvmetaError | None = None
        self._closed = False
        self._pid = os.getpid()
        self._log: Log | None = None
        self._acknowledged = WAL_START
        self._datasets_lock = threading.Lock()
        self._manifest_lock = threading.Lock()

    def _identify(self, identity: Identity) -> None:
        self.identity = identity
        self.keys = mixing.round_keys(identity.seed)

    def _commit_from(self, position: Position, group_rows_max: int) -> None:
        """Take writes, whose records follow `position`."""
        self._acknowledged = position
        self._committer = Committer(
            self.clock, position, self._append, self._make_room, self.all_or_stop, group_rows_max
        )

    # What a kind of store adds

    @abstractmethod
    def load(self, tree: Tree, batches: Iterable[bulk.Columns]) -> int:
        """Bulk-load `batches`; return the rows read. Visible whole when it returns, or not at all."""

    @abstractmethod
    def ingest(self, tree: Tree, rows: Rows) -> None:
        """Install `rows` (u8[n, 6], sorted, distinct IDs, versions of their own), durably."""

    @abstractmethod
    def log_bytes(self) -> int:
        """Return the bytes of the log."""

    @abstractmethod
    def refresh(self) -> None:
        """Read the store's state anew (mode "r")."""

    @abstractmethod
    def close(self) -> None:
        """Close it. Idempotent."""

    # Whether writes go on

    def check_open(self) -> None:
        """Raise where the engine was closed."""
        if self._closed:
            raise InputError(f"{self.path} is closed; open the store again")

    @property
    def may_write(self) -> bool:
        """Return whether this handle takes writes now."""
        return not (self._closed or self.read_only or self._stopped) and self._pid == os.getpid()

    def check_writable(self) -> None:
        """Raise what keeps this handle from writing."""
        self.check_open()
        if self.read_only:
            raise ReadOnlyError(f'{self.path} is open with mode="r"; open it with mode="a" to write')
        if self._pid != os.getpid():
            raise ReadOnlyError(
                f"{self.path} was opened for writing before a fork, and only the parent can write. "
                'Read it here with mode="r", or start writers by "spawn" or "forkserver"'
            )
        if self._stopped is not None:
            raise type(self._stopped)(
                f"{self.path} takes no writes since a failure: {self._stopped}. Open it again"
            )

    def stop_writes(self, error: BaseException) -> None:
        """Take no more writes: after a failed write or fsync nobody can say what the device holds."""
        if self._stopped is None:
            known = isinstance(error, KvmetaError)
            self._stopped = error if known else UnavailableError(f"interrupted by {error!r}")  # type: ignore[assignment]
        self.background.notify()

    @contextlib.contextmanager
    def all_or_stop(self) -> Iterator[None]:
        """Stop writes where the block does not run to its end: disk and memory may differ from then on."""
        try:
            yield
        except BaseException as error:
            self.stop_writes(error)
            raise

    # The manifest and the log

    def take_number(self) -> int:
        """Return a number no file or run of this store has."""
        with self._manifest_lock:
            return self.manifest.take_file_number()

    def change(self, change: Callable[[Manifest], Change]) -> None:
        """Make the change that `change` returns for the current manifest, durably."""
        self.check_writable()
        with self._manifest_lock:
            self.check_writable()  # again: a close, which takes this lock, may have come between
            prepared = self.manifest.prepare(change(self.manifest))
            with self.all_or_stop():
                self._durably(prepared.batch)
                self.manifest.accept(prepared)
                self._write_mark()

    def _append(self, batch: Batch, position: Position) -> None:
        """Make a WAL group durable (the committer's)."""
        self._durably(batch)
        with self._manifest_lock:
            self._acknowledged = position
            self._write_mark()

    def _durably(self, batch: Batch) -> None:
        assert self._log is not None
        self._log.write(batch)
        if self.options.sync:
            self._log.sync()

    @abstractmethod
    def _write_mark(self) -> None:
        """Note outside the log what it holds, where there is such a note."""

    def position(self) -> Position:
        """Return the WAL position of the last visible group (of a reader: at its last refresh)."""
        return self._acknowledged if self.read_only else self._committer.position

    # Datasets

    def tree(self, name: str, number: int = 0) -> Tree:
        """Return the tree of dataset `name`, of that of a number where one is given."""
        self.check_open()
        for tree in self.trees.values():
            if tree.dataset.name == name:
                if number not in (0, tree.dataset.number):
                    raise another_dataset(name)
                return tree
        known = ", ".join(sorted(tree.dataset.name for tree in self.trees.values()))
        raise NotFoundError(f"no dataset {name!r} in {self.path} (it has: {known}); create_dataset makes one")

    def has_tree(self, tree: Tree) -> bool:
        """Return whether the tree's dataset is still there."""
        return self.trees.get(tree.dataset.number) is tree

    def check_tree(self, tree: Tree) -> None:
        """Raise where the tree's dataset was dropped."""
        if not self.has_tree(tree):
            raise NotFoundError(f"dataset {tree.dataset.name!r} was dropped from {self.path}")

    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False, exist_ok: bool = False
    ) -> None:
        """Create a dataset with its options, fixed from now on."""
        made: list[DatasetRecord] = []

        def change(manifest: Manifest) -> Change:
            if any(dataset.name == name for dataset in manifest.datasets.values()):
                raise InputError(f"dataset {name!r} exists already in {self.path}")
            record = DatasetRecord(manifest.head.next_dataset, name, ttl_s, bottom_filter)
            made.append(record)
            return Change(datasets={record.number: record}, trees={record.number: TreeRecord()})

        if exist_ok and any(tree.dataset.name == name for tree in self.trees.values()):
            return
        with self._datasets_lock:
            self.change(change)
            tree = Tree(made[0], TreeRecord(), (), self.clock, self.options)
            self.trees = {**self.trees, made[0].number: tree}

    def drop_dataset(self, name: str) -> None:
        """Remove a dataset and its entries."""
        self.check_writable()
        if name == DEFAULT_DATASET:
            raise InputError("the default dataset cannot be dropped")
        with self.background.lock, self._committer.lock, self._datasets_lock:
            tree = self.tree(name)
            number = tree.dataset.number
            self.background.forget(tree)
            with self.all_or_stop():
                self.change(lambda _: Change(datasets={number: None}, trees={number: None}))
                self.trees = {n: t for n, t in self.trees.items() if n != number}
                self.remove_segments(s.record.number for s in tree.view.segments)

    def allow_purge(self, tree: Tree, below: int) -> None:
        """Let merges drop the tree's tombstones that have a version below `below`."""
        tree.purge_below = below

    # Writing

    def commit(self, write: Write) -> None:
        """Return when `write` is durable and visible."""
        self.check_writable()
        self.background.wait_for_room(write.tree)  # before the commit lock: what frees room may need it
        self._committer.commit(write)

    def settle(self) -> None:
        """Return when what is being committed now is visible."""
        with self._committer.lock:
            pass

    def _make_room(self, tree: Tree, n: int) -> None:
        """Let `n` rows fit the tree's memtable (the committer's)."""
        self.check_writable()
        self.check_tree(tree)
        if not tree.reserve(n):
            tree.freeze(n)
            tree.reserve(n)
            self.background.notify()

    def freeze(self, trees: Iterable[Tree]) -> None:
        """Set the mutable memtables of `trees` aside for their flush."""
        with self._committer.lock:
            for tree in trees:
                tree.freeze()

    def set_tree(
        self,
        tree: Tree,
        record: TreeRecord,
        *,
        flushed: Memtable | None = None,
        anchor: Position | None = None,
    ) -> None:
        """Make a tree's new record durable, then visible, then remove the files it no longer names."""
        self.check_tree(tree)
        with self.all_or_stop():
            self.change(lambda _: Change(trees={tree.dataset.number: record}, anchor=anchor))
            self.remove_segments(tree.replace_runs(record, self.files, flushed))

    def remove_segments(self, numbers: Iterable[int]) -> None:
        """Remove files that the manifest does not name."""
        for number in numbers:
            path = filenames.segment(self.path, number)
            with os_errors("removing", path):
                path.unlink(missing_ok=True)

    def appended_rows(self) -> int:
        """Return the rows appended to the WAL since the store was opened, those replayed included."""
        return self._committer.appended_rows
