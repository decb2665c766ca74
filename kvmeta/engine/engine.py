"""The engine: one store directory, its log, its trees, and everything that does I/O on them.

    commit ──> WAL (one fsync a group) ──> memtables ──> flush ──> runs ──> merge ──> fewer runs
                                     every arrow but the first is a manifest change

Invariants: nothing is visible or acknowledged before its WAL group is synced; a manifest change is durable
before the view that shows it is published and before a file it no longer names is removed; after a failed
write or fsync the engine takes no more writes (what failed may be present), reads go on.

Locks, in the order they may nest: background, commit, datasets, manifest, a tree's own.

This file opens, closes and changes the store's state; `background.py` decides when to flush and merge.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvmeta import mixing
from kvmeta.engine import filenames, recovery, segment_header
from kvmeta.engine import load as bulk
from kvmeta.engine import mark as marks
from kvmeta.engine.background import Background
from kvmeta.engine.commit import Committer, Write
from kvmeta.engine.kernels.layout import VERSION
from kvmeta.engine.manifest import Change, DatasetRecord, Manifest, RunRecord, TreeRecord
from kvmeta.engine.mark import Mark
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.recovery import Recovered
from kvmeta.engine.rocks import WAL, Batch, Rocks, family_names
from kvmeta.engine.run import SegmentFiles
from kvmeta.engine.segment import Segment
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.tree import Tree
from kvmeta.engine.wal import Position
from kvmeta.errors import (
    CorruptionError,
    FormatError,
    InputError,
    KvmetaError,
    NotFoundError,
    ReadOnlyError,
    StoreLockedError,
    UnavailableError,
    os_errors,
)
from kvmeta.version import HybridClock

Rows = NDArray[np.uint64]

DEFAULT_DATASET = "default"
_REFRESH_TRIES = 16


class Engine:
    """An open store. `mode`: "a" writes (made if missing), "x" makes, "r" reads the state at open."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: str = "a",
        options: EngineOptions | None = None,
        clock: HybridClock | None = None,
    ) -> None:
        if mode not in ("a", "r", "x"):
            raise InputError(f'mode: expected "a", "r" or "x", got {mode!r}')
        self.path = Path(path).absolute()
        self.options = options or EngineOptions()
        self.read_only = mode == "r"
        self.clock = clock or HybridClock()
        self.trees: dict[int, Tree] = {}
        self.manifest = Manifest()
        self._stopped: KvmetaError | None = None
        self._closed = False
        self._pid = os.getpid()
        self._rocks: Rocks | None = None
        self._mark: marks.MarkFile | None = None
        self._acknowledged = Position(0, 0)
        self._closing = threading.Lock()
        self._datasets_lock = threading.Lock()
        self._manifest_lock = threading.Lock()
        self._lock_fd = -1
        self.background = Background(self)
        try:
            self._open(mode)
        except BaseException:
            self._release()
            raise

    # Opening and closing

    def _open(self, mode: str) -> None:
        with os_errors("opening", self.path):
            made = filenames.identity(self.path).exists()
        if mode == "r" and not made:
            self._refuse_unmade()
        if mode != "r":
            self._lock_for_writing()
            made = filenames.identity(self.path).exists()
            if mode == "x" and made:
                raise InputError(f'{self.path} is a store already; open it with mode="a"')
            if not made:
                self._make()
        self.identity = recovery.read_identity(self.path)
        self.keys = mixing.round_keys(self.identity.seed)
        self.files = SegmentFiles(
            self.path,
            self.identity.store_id,
            self.take_number,
            self.options.segment_bytes_max,
            self.options.probe,
        )
        if mode == "r":
            self.refresh()
            return
        mark, turn = marks.read(self.path, self.identity.store_id)
        if mark.clean:
            marks.check_seal(self.path, mark)
        log = filenames.log(self.path)
        with Rocks(log, read_only=True) as looking:  # judge before RocksDB's own recovery rewrites it
            state = recovery.recover(self.path, looking, mark, self.files, self.clock, self.options)
        self._mark = marks.MarkFile(self.path, self.identity.store_id, turn)
        self._mark.write_durably(replace(mark, clean=False, seal=0))
        self._rocks = Rocks(log)
        recovery.check_same(self._rocks, state, log)
        self._take_over(state)
        options = self.options
        group = max(options.batch_rows_max, min(options.group_rows_max, options.memtable_rows_max))
        self._committer = Committer(
            self.clock, state.position, self._append, self._make_room, self.all_or_stop, group
        )
        self._committer.appended_rows = state.replayed_rows
        self._remove_orphans()
        self.create_dataset(DEFAULT_DATASET, exist_ok=True)
        self.files = replace(self.files, probe=False)  # what is written from now on can be read
        for tree in self.trees.values():
            if self.options.probe or any(run.record.damaged for run in tree.runs):
                self.background.quarantine(tree)  # what was restored from a copy is fit again
        self.background.start(thread=self.options.background)

    def _refuse_unmade(self) -> None:
        with os_errors("opening", self.path):
            if not self.path.exists():
                raise NotFoundError(f'no store at {self.path}; mode="a" makes one')
            if not self.path.is_dir():
                raise FormatError(f"{self.path} is not a directory")
        raise FormatError(
            f"{self.path} is not a kvmeta store: it has no {filenames.identity(self.path).name} file"
        )

    def _lock_for_writing(self) -> None:
        path = filenames.lock(self.path)
        with os_errors("opening", self.path):
            if self.path.exists() and not self.path.is_dir():
                raise FormatError(f"{self.path} is not a directory")
            self.path.mkdir(parents=True, exist_ok=True)
            ours = {"KVMETA", "KVMETA.new", "LOCK", "MARK", "SEAL", "log", "node", "segments"}
            foreign = sorted(file.name for file in self.path.iterdir() if file.name not in ours)
            if foreign and not filenames.identity(self.path).exists():
                raise FormatError(
                    f"{self.path} holds {foreign[0]!r} and is not a kvmeta store; choose an empty directory"
                )
            self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreLockedError(
                    f'{self.path} is open for writing elsewhere; mode="r" reads beside the writer'
                ) from None

    def _make(self) -> None:
        """Make an empty store; KVMETA comes last, so a store without one was never finished."""
        segments = filenames.segments(self.path)
        with os_errors("making", self.path):
            segments.mkdir(exist_ok=True)
            if any(segments.iterdir()):
                raise FormatError(
                    f"{self.path}: KVMETA is missing but there are segments; restore it from a copy"
                )
        identity = recovery.new_identity()
        log = filenames.log(self.path)
        self._refuse_used_log(log)
        with os_errors("clearing", log):
            if log.exists():  # never finished: nothing was ever stored in it
                shutil.rmtree(log)
        with Rocks(log) as rocks:
            prepared = Manifest().prepare(Change())
            rocks.write(prepared.batch)
            rocks.sync()
        mark = marks.MarkFile(self.path, identity.store_id, 0)
        mark.write_durably(Mark(generation=prepared.head.generation, digest=prepared.head.digest))
        mark.close()
        recovery.write_identity(self.path, identity)

    def _refuse_used_log(self, log: Path) -> None:
        """Raise where a log without KVMETA may hold something; without touching it: it may be restored."""
        if WAL in family_names(log):
            with Rocks(log, read_only=True) as looking:
                rows = looking.manifest()
            used = bool(rows) and Manifest.read(rows, log).head.generation > 1
        else:
            with os_errors("listing", log):
                files = list(log.iterdir()) if log.exists() else []
                used = any(file.suffix in (".log", ".sst") and file.stat().st_size for file in files)
                used = used or filenames.mark(self.path).exists()
        if used:
            raise FormatError(f"{self.path}: KVMETA is missing but the log is in use; restore it from a copy")

    def _take_over(self, state: Recovered) -> None:
        self.manifest, self.trees, self._acknowledged = state.manifest, state.trees, state.position

    def refresh(self) -> None:
        """Read the store's state anew (mode "r")."""
        if not self.read_only:
            return
        for attempt in range(_REFRESH_TRIES):
            time.sleep(0.02 * attempt)
            try:
                mark, _ = marks.read(self.path, self.identity.store_id)
                if mark.clean:
                    marks.check_seal(self.path, mark)
                with Rocks(filenames.log(self.path), read_only=True) as rocks:
                    state = recovery.recover(
                        self.path, rocks, mark, self.files, self.clock, self.options, self._open_segments()
                    )
            except CorruptionError:
                # The writer may have moved the log on while it was read; real damage stays.
                if attempt + 1 == _REFRESH_TRIES:
                    raise
                continue
            missing = any(
                s.damage and not filenames.exists(s.path)
                for tree in state.trees.values()
                for s in tree.view.segments
            )
            if not missing or attempt + 1 == _REFRESH_TRIES:
                break  # else a merge removed it since
        self._take_over(state)
        self._pid = os.getpid()

    def _open_segments(self) -> dict[int, Segment]:
        segments = [s for tree in self.trees.values() for s in tree.view.segments]
        return {segment.record.number: segment for segment in segments if not segment.damage}

    def close(self) -> None:
        """Stop, make the mark clean, seal the log, release the lock. Idempotent."""
        with self._closing:
            self._close()

    def _close(self) -> None:
        if self._closed:
            return
        try:
            if self._pid == os.getpid() and not self.read_only:
                self.background.stop()
                self._closed = True
                self._close_log()
        finally:
            self._release()

    def _close_log(self) -> None:
        assert self._rocks is not None
        if self._stopped is not None:
            with contextlib.suppress(KvmetaError):
                self._rocks.close()
            self._rocks = None
            return
        with self._committer.lock, self._manifest_lock:
            self._rocks.sync()
            self._rocks.close()
            self._rocks = None
            with os_errors("cleaning", self.path):
                for file in filenames.log(self.path).iterdir():
                    if filenames.is_scratch(file) and file.name != "LOCK":
                        file.unlink(missing_ok=True)
            mark = replace(self._mark_now(), clean=True, seal=marks.seal(self.path))
            assert self._mark is not None
            self._mark.write_durably(mark)

    def _release(self) -> None:
        self._closed = True
        if self._pid == os.getpid():
            self.background.stop()
        if self._rocks is not None and self._pid == os.getpid():
            with contextlib.suppress(KvmetaError):
                self._rocks.close()
        self._rocks = None
        self.trees = {}  # with them go the mappings, unless a lookup is still under way
        if self._mark is not None:
            self._mark.close()
            self._mark = None
        if self._lock_fd >= 0:
            if self._pid == os.getpid():  # a fork shares the lock and may outlive this handle
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = -1

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

    def _remove_orphans(self) -> None:
        """Remove this store's segment files that the manifest does not name: left over from a crash."""
        named = {s.record.number for tree in self.trees.values() for s in tree.view.segments}
        segments = filenames.segments(self.path)
        with os_errors("listing", segments):
            if not segments.is_dir():
                raise CorruptionError(f"{segments} is missing; restore it from a copy", segments)
            for path in segments.iterdir():
                number = filenames.segment_number(path)
                if (
                    number is not None
                    and number not in named
                    and segment_header.is_left_over(path, self.identity.store_id)
                ):
                    path.unlink()

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
        assert self._rocks is not None
        self._rocks.write(batch)
        if self.options.sync:
            self._rocks.sync()

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

    def _mark_now(self) -> Mark:
        head, position = self.manifest.head, self._acknowledged
        return Mark(position.sequence, position.checksum, head.generation, head.digest)

    def _write_mark(self) -> None:
        if self._mark is not None:
            self._mark.write(self._mark_now())

    def position(self) -> Position:
        """Return the WAL position of the last visible group (of a reader: at its last refresh)."""
        return self._acknowledged if self.read_only else self._committer.position

    def log_bytes(self) -> int:
        """Return the bytes of the log's files."""
        total = 0
        with os.scandir(filenames.log(self.path)) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # RocksDB removed it meanwhile
                    total += file.stat().st_size
        return total

    # Datasets

    def tree(self, name: str) -> Tree:
        """Return the tree of dataset `name`."""
        self.check_open()
        for tree in self.trees.values():
            if tree.dataset.name == name:
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
        if not tree.fits(n):
            tree.freeze()
            self.background.notify()

    def freeze(self, trees: Iterable[Tree]) -> None:
        """Set the mutable memtables of `trees` aside for their flush."""
        with self._committer.lock:
            for tree in trees:
                tree.freeze()

    def load(self, tree: Tree, batches: Iterable[bulk.Columns]) -> int:
        """Bulk-load `batches`; return the rows read. Visible whole when it returns, or not at all."""
        self.check_writable()
        runs, rows, stamps = bulk.sorted_writers(
            batches,
            self.keys,
            self.files,
            rows_max=self.options.load_rows_max,
            filter_bits=self.options.filter_bits_per_row,
        )
        if not runs:
            return rows
        with self.background.lock, self._committer.lock:
            try:
                self.check_writable()
                self.check_tree(tree)
                records = self._seal(runs, self.clock.stamp(stamps))
            except BaseException:
                bulk.abandon(runs)
                raise
            self.set_tree(tree, replace(tree.record, runs=(*tree.record.runs, *records)))
        self.background.notify()
        return rows

    def ingest(self, tree: Tree, rows: Rows) -> None:
        """Install `rows` (u8[n, 6], sorted, distinct IDs, versions of their own) as a run, durably.

        They need not be newer than what is held: the larger version wins, as everywhere.
        """
        self.check_writable()
        if not len(rows):
            return
        self.clock.observe(int(rows[:, VERSION].max()))
        writers: list[SegmentWriter] = []
        with self.background.lock:
            try:
                self.check_tree(tree)
                for writer in self.files.write(rows, filter_bits=self.options.filter_bits_per_row):
                    writers.append(writer)
                records = self._seal([writers], 0)
            except BaseException:
                bulk.abandon([writers])
                raise
            self.set_tree(tree, replace(tree.record, runs=(*tree.record.runs, *records)))
        self.background.notify()

    def _seal(self, runs: list[list[SegmentWriter]], offset: int) -> list[RunRecord]:
        records = []
        for writers in runs:
            segments = tuple(writer.seal(offset) for writer in writers)
            records.append(RunRecord(self.take_number(), bottom=False, from_high=0, segments=segments))
        filenames.sync_directory(filenames.segments(self.path))
        return records

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
