"""The engine: one store directory, its log, its trees, and everything that does I/O on them.

    commit ──> WAL (one fsync a group) ──> memtables ──> flush ──> runs ──> merge ──> fewer runs
                                     every arrow but the first is a manifest change

Invariant: nothing is visible or acknowledged before its WAL group is synced. This file opens, closes and
loads a store; `state.py` holds its state and changes it; `background.py` decides when to flush and merge.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine import filenames, recovery, segment_header
from kvmeta.engine import load as bulk
from kvmeta.engine import mark as marks
from kvmeta.engine.background import Background
from kvmeta.engine.kernels.layout import VERSION
from kvmeta.engine.manifest import Change, Manifest, RunRecord
from kvmeta.engine.mark import Mark
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.recovery import Recovered
from kvmeta.engine.rocks import WAL, Rocks, family_names
from kvmeta.engine.run import SegmentFiles
from kvmeta.engine.segment import Segment
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.state import DEFAULT_DATASET, State
from kvmeta.engine.tree import Tree
from kvmeta.errors import (
    CorruptionError,
    FormatError,
    InputError,
    KvmetaError,
    NotFoundError,
    StoreLockedError,
    os_errors,
)
from kvmeta.version import HybridClock

Rows = NDArray[np.uint64]

_REFRESH_TRIES = 16


class Engine(State):
    """An open store. `mode`: "a" writes (made if missing), "x" makes, "r" reads the state at open."""

    background: Background

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: str = "a",
        options: EngineOptions | None = None,
        clock: HybridClock | None = None,
    ) -> None:
        if mode not in ("a", "r", "x"):
            raise InputError(f'mode: expected "a", "r" or "x", got {mode!r}')
        super().__init__(Path(path).absolute(), options or EngineOptions(), clock, read_only=mode == "r")
        self._log: Rocks | None = None
        self._mark: marks.MarkFile | None = None
        self._closing = threading.Lock()
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
        self._identify(recovery.read_identity(self.path))
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
        self._log = Rocks(log)
        recovery.check_same(self._log, state, log)
        self._take_over(state)
        options = self.options
        group = max(options.batch_rows_max, min(options.group_rows_max, options.memtable_rows_max))
        self._commit_from(state.position, group)
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
        assert self._log is not None
        if self._stopped is not None:
            with contextlib.suppress(KvmetaError):
                self._log.close()
            self._log = None
            return
        with self._committer.lock, self._manifest_lock:
            self._log.sync()
            self._log.close()
            self._log = None
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
        if self._log is not None and self._pid == os.getpid():
            with contextlib.suppress(KvmetaError):
                self._log.close()
        self._log = None
        self.trees = {}  # with them go the mappings, unless a lookup is still under way
        if self._mark is not None:
            self._mark.close()
            self._mark = None
        if self._lock_fd >= 0:
            if self._pid == os.getpid():  # a fork shares the lock and may outlive this handle
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            os.close(self._lock_fd)
            self._lock_fd = -1

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

    def log_bytes(self) -> int:
        """Return the bytes of the log's files."""
        total = 0
        with os.scandir(filenames.log(self.path)) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # RocksDB removed it meanwhile
                    total += file.stat().st_size
        return total

    # The mark

    def _mark_now(self) -> Mark:
        head, position = self.manifest.head, self._acknowledged
        return Mark(position.sequence, position.checksum, head.generation, head.digest)

    def _write_mark(self) -> None:
        if self._mark is not None:
            self._mark.write(self._mark_now())

    # What comes in without the log

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
