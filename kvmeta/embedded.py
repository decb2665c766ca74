"""The embedded store: the public contract over the engine, in this process."""

from __future__ import annotations

import builtins
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Outcome, Relocated, ScanPage, as_batches
from kvmeta.engine import commit, recovery
from kvmeta.engine import scan as scanning
from kvmeta.engine import verify as verification
from kvmeta.engine.commit import Write
from kvmeta.engine.distinct import Distinct
from kvmeta.engine.engine import Engine
from kvmeta.engine.kernels import hashing
from kvmeta.engine.manifest import Change, Manifest
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.state import State
from kvmeta.engine.tree import Tree
from kvmeta.errors import KvmetaError, UnsupportedError
from kvmeta.ids import ID, as_ids
from kvmeta.location import LOCATION, as_locations
from kvmeta.protocol.volume_pages import VolumePages
from kvmeta.store import (
    Dataset,
    DatasetStats,
    Progress,
    Scan,
    Store,
    StoreStats,
    VerifyReport,
    check_dataset_name,
    check_ttl,
)
from kvmeta.volumes import (
    NewVolume,
    Volume,
    VolumeRow,
    Volumes,
    normal_uri,
    registered,
    unregistered,
)

Ids = NDArray[np.void]
Locations = NDArray[np.void]
Words = NDArray[np.uint64]


class EmbeddedStore(Store):
    """A store in a local directory. `engine` is its engine, for tests and measurements."""

    def __init__(
        self, path: str | os.PathLike[str], mode: str = "a", options: EngineOptions | None = None
    ) -> None:
        self.engine: State = Engine(path, mode, options)
        self.volumes: EmbeddedVolumes = EmbeddedVolumes(self.engine)

    def __reduce__(self) -> tuple[type[EmbeddedStore], tuple[str, str, EngineOptions]]:
        if not self.engine.read_only:
            raise UnsupportedError(
                f'{self!r} cannot be pickled: there is one writer; open with mode="r" to share'
            )
        return EmbeddedStore, (str(self.engine.path), "r", self.engine.options)

    def __repr__(self) -> str:
        return f'<kvmeta store {self.engine.path}, mode "{"r" if self.engine.read_only else "a"}">'

    def dataset(self, name: str = "default") -> EmbeddedDataset:
        """Return a dataset; NotFoundError if there is none of that name."""
        return EmbeddedDataset(self, name, self.engine.tree(name).dataset.number)

    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> EmbeddedDataset:
        """Create a dataset; its options are fixed from now on."""
        check_dataset_name(name)
        self.engine.create_dataset(name, ttl_s=check_ttl(ttl_s), bottom_filter=bottom_filter)
        return self.dataset(name)

    def drop_dataset(self, name: str) -> None:
        """Remove a dataset and all its entries."""
        self.engine.drop_dataset(name)

    def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""
        self.engine.check_open()
        return sorted(tree.dataset.name for tree in self.engine.trees.values())

    def dataset_numbers(self) -> dict[str, int]:
        """Return the numbers of the datasets by name: none has one that another had before."""
        self.engine.check_open()
        return {tree.dataset.name: tree.dataset.number for tree in self.engine.trees.values()}

    def flush(self) -> None:
        """Write what is in memory to the runs on disk; it was durable before."""
        self.engine.background.flush()

    def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge each dataset's runs into one; with `discard_damaged`, give up what cannot be read."""
        report = None if progress is None else lambda share: progress(round(share * 1000), 1000)
        self.engine.background.compact(discard=discard_damaged, progress=report)

    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every segment page and report what is not as it was written; damage found is quarantined."""
        self.engine.check_open()
        trees = list(self.engine.trees.values())
        segments = sum(len(tree.view.segments) for tree in trees)
        total, done = sum(verification.pages_of(tree) for tree in trees), 0

        def note(pages: int) -> None:
            nonlocal done
            done += pages
            if progress is not None:
                progress(done, total)

        damages = [damage for tree in trees for damage in verification.verify(tree, note)]
        if self.engine.may_write:
            for tree in trees:
                self.engine.background.quarantine(tree)
        return VerifyReport(segments, total, tuple(damages))

    def stats(self) -> StoreStats:
        """Return figures about the store."""
        self.engine.check_open()
        return StoreStats(
            path=str(self.engine.path),
            format=recovery.FORMAT,
            read_only=self.engine.read_only,
            wal_sequence=self.engine.position().sequence,
            log_bytes=self.engine.log_bytes(),
            volumes=len(self.volumes),
            datasets=tuple(_dataset_stats(tree) for tree in self.engine.trees.values()),
        )

    def refresh(self) -> None:
        """Let a read-only handle see the store's current state."""
        self.engine.check_open()
        self.engine.refresh()

    def close(self) -> None:
        """Release the store. Idempotent."""
        self.engine.close()


class EmbeddedDataset(Dataset):
    """A dataset of an embedded store, by name and, unless 0, by number; as cheap to make as these."""

    def __init__(self, store: EmbeddedStore, name: str, number: int = 0) -> None:
        self._store = store
        self._engine = store.engine
        self.name = name
        self._number = number

    def __reduce__(self) -> tuple[type[EmbeddedDataset], tuple[EmbeddedStore, str, int]]:
        return EmbeddedDataset, (self._store, self.name, self._number)

    def __repr__(self) -> str:
        return f"<kvmeta dataset {self.name!r} of {self._engine.path}>"

    def _lookup(self, ids: Ids, *, mask: bool = False) -> Hits:
        mixed = np.empty((len(ids), 2), np.uint64)
        hashing.mix(words_of(ids, 2), self._engine.keys, mixed)
        got = self._engine.tree(self.name, self._number).lookup(mixed)
        return Hits(
            got.found.view(np.bool_), locations_of(got.locations), got.versions, got.failed.view(np.bool_)
        )

    def _put(self, ids: Ids, locations: Locations) -> None:
        self._commit(commit.PUT, self._distinct(ids, locations, last=True))

    def _delete(self, ids: Ids) -> None:
        self._commit(commit.DELETE, self._distinct(ids, np.zeros(len(ids), LOCATION), last=True))

    def _insert(self, ids: Ids, locations: Locations) -> Inserted:
        distinct = self._distinct(ids, locations, last=False)
        writes = self._commit(commit.INSERT, distinct)
        failed = _joined([write.held.failed for write in writes if write.held], np.uint8).view(np.bool_)
        absent = _joined([write.held.absent() for write in writes if write.held], np.bool_)
        versions = _joined([write.versions() for write in writes], np.uint64)
        words = _joined([write.locations() for write in writes], np.uint64).reshape(-1, 3)
        return Inserted(
            distinct.spread(absent) & distinct.winners(),
            locations_of(distinct.spread(words)),
            distinct.spread(versions),
            distinct.spread(failed),
        )

    def _relocate(self, ids: Ids, locations: Locations, versions: NDArray[np.uint64]) -> Relocated:
        distinct = self._distinct(ids, locations, last=False)
        writes = self._commit(commit.RELOCATE, distinct, versions[distinct.kept])
        judged = _joined([write.outcome for write in writes if write.outcome is not None], np.uint8)
        outcomes = distinct.spread(judged)
        outcomes[~distinct.winners()] = Outcome.REPEATED
        return Relocated(outcomes == Outcome.RELOCATED, outcomes)

    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Bulk-load (ids, locations) batches and return the rows read."""

        def columns() -> Iterator[tuple[Words, Words]]:
            for ids, locations in as_batches(batches):
                column = as_ids(ids)
                yield words_of(column, 2), words_of(as_locations(locations, len(column)), 3)

        return self._engine.load(self._engine.tree(self.name, self._number), columns())

    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows."""
        over = scanning.stretch(scan.shard, scan.sample)
        tree = self._engine.tree(self.name, self._number)
        page = scanning.page(tree, self._engine.keys, over, scan.after, scan.page_rows, scan.tag)
        ids = page.ids.reshape(-1).view(ID)
        return ScanPage(ids, locations_of(page.locations), page.versions, page.cursor), page.done

    def _volumes(self, numbers: list[int]) -> list[Volume]:
        return [self._store.volumes.get(number) for number in numbers]

    def _distinct(self, ids: Ids, locations: Locations, *, last: bool) -> Distinct:
        return Distinct.of(words_of(ids, 2), words_of(locations, 3), self._engine.keys, last=last)

    def _commit(self, kind: str, distinct: Distinct, expected: Words | None = None) -> list[Write]:
        """Commit the rows chunk by chunk; an error's `.failed` marks every ID not acknowledged."""
        tree = self._engine.tree(self.name, self._number)
        writes: list[Write] = []
        rows, size = distinct.rows, self._engine.options.batch_rows_max
        if not len(rows):
            self._engine.check_writable()
        for start in range(0, len(rows), size):
            chunk = slice(start, start + size)
            write = Write(tree, kind, rows[chunk], None if expected is None else expected[chunk])
            try:
                self._engine.commit(write)
            except KvmetaError as error:
                raise _with_failed(error, distinct.spread(np.arange(len(rows)) >= start)) from error
            writes.append(write)
        return writes


def _joined(columns: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """Return the columns of a call's chunks as one; most calls have one chunk."""
    if len(columns) == 1:
        return columns[0]
    return np.concatenate(columns) if columns else np.empty(0, dtype)


def _with_failed(error: KvmetaError, failed: NDArray[np.bool_]) -> KvmetaError:
    """Return a copy of `error` for one caller of a group: others have their own `failed`."""
    own = type(error)(*error.args)
    own.__dict__.update(error.__dict__)
    own.failed = failed
    return own


class EmbeddedVolumes(Volumes):
    """The table of volumes, whose pages the manifest keeps; they are read when somebody asks."""

    def __init__(self, engine: State) -> None:
        self._engine = engine
        self._lock = threading.RLock()
        self._pages = VolumePages()
        self._read: Manifest | None = None  # whose pages these are

    def __len__(self) -> int:
        return len(self._known)

    def register(self, wanted: builtins.list[NewVolume]) -> builtins.list[Volume]:
        """Register volumes that are checked already."""
        with self._lock:
            self._engine.check_writable()
            next_volume = self._engine.manifest.head.next_volume
            rows, new = registered(wanted, self._known.of_uri, next_volume)
            if new:
                self._set(new, next_volume + len(new))
            return [row.volume() for row in rows]

    def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        self._engine.check_open()
        return self._row(volume).volume()

    def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        self._engine.check_open()
        return [*self._known]

    def messages(self, after: int, bytes_max: int) -> tuple[bytes, bool]:
        """Return volumes above a number as the bytes of a ListVolumesResponse, and whether they are all."""
        self._engine.check_open()
        return self._known.messages(after, bytes_max)

    def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` stand for another URI from now on; every entry in it follows."""
        text = normal_uri(uri)

        def moved(row: VolumeRow) -> VolumeRow:
            owner = self._known.of_uri(text)
            return row.moved(text, None if owner is None else owner.number)

        return self._replace(volume, moved)

    def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online", "offline" or "retired"."""
        return self._replace(volume, lambda row: row.in_state(state))

    def _replace(self, volume: int | str | Path, change: Callable[[VolumeRow], VolumeRow]) -> Volume:
        with self._lock:
            self._engine.check_open()
            row = change(self._row(volume))
            self._set([row], 0)
            return row.volume()

    def _set(self, rows: builtins.list[VolumeRow], next_volume: int) -> None:
        pages = self._known.pages_with(rows)
        self._engine.change(lambda _: Change(volume_pages=pages, next_volume=next_volume))
        for page, raw in pages.items():
            self._pages.take(page, raw)

    @property
    def _known(self) -> VolumePages:
        """Return the volumes as the manifest has them now: another handle's changes come with a new one."""
        manifest = self._engine.manifest
        if self._read is not manifest:
            with self._lock:
                for page, raw in manifest.volume_pages.items():
                    if self._pages.pages.get(page) != raw:
                        self._pages.take(page, raw)
                self._read = manifest
        return self._pages

    def _row(self, volume: int | str | Path) -> VolumeRow:
        name: str | int = normal_uri(volume) if isinstance(volume, (str, Path)) else int(volume)
        row = self._known.of_uri(name) if isinstance(name, str) else self._known.get(name)
        if row is None:
            raise unregistered(name)
        return row


def words_of(column: NDArray[np.void], words: int) -> Words:
    """Return a column of fixed-size records as u8[n, words], the same bytes."""
    return column.view(np.uint64).reshape(-1, words)


def locations_of(words: Words) -> Locations:
    """Return u8[n, 3] as LOCATION[n]; a copy where its rows do not lie back to back."""
    return np.ascontiguousarray(words).reshape(-1).view(LOCATION)


def _dataset_stats(tree: Tree) -> DatasetStats:
    segments = [segment for run in tree.runs for segment in run.segments]
    memtables = tree.view.memtables
    return DatasetStats(
        name=tree.dataset.name,
        ttl_s=tree.dataset.ttl_s,
        rows=sum(segment.record.rows for segment in segments),
        tombstones=sum(segment.record.tombstones for segment in segments),
        memtable_rows=sum(memtable.count for memtable in memtables),
        runs=len(tree.runs),
        segments=len(segments),
        quarantined_runs=sum(run.quarantined for run in tree.runs),
        disk_bytes=sum(segment.record.file_bytes for segment in segments),
        memtable_bytes=sum(memtable.memory_bytes for memtable in memtables),
        table_bytes=sum(segment.tables_bytes for segment in segments),
        merging=bool(tree.record.merges),
    )
