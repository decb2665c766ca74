"""The one module that knows RocksDB: two column families, atomic batches, group fsync, typed errors.

RocksDB is the store's log and catalogue. Its traps shape this file: options of every column family are given
at every open; handles are dropped before close, for a live one keeps RocksDB's lock; `flush_wal` releases the
GIL while `write` with sync would hold it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from rocksdict import AccessType, ColumnFamily, DBCompressionType, DBRecoveryMode, Options, Rdict, WriteBatch

from kvmeta.engine import filenames, framing
from kvmeta.errors import (
    CorruptionError,
    KvmetaError,
    ReadOnlyError,
    StorageFullError,
    StoreLockedError,
    UnavailableError,
    from_os_error,
)

WAL = "wal"
MANIFEST = "default"
_MIB = 1 << 20


@dataclass
class Batch:
    """Changes that take effect together or not at all."""

    manifest: dict[bytes, bytes | None] = field(default_factory=dict)
    wal: list[tuple[bytes, bytes]] = field(default_factory=list)
    wal_trim: tuple[bytes, bytes] | None = None
    """Remove WAL keys in [first, end)."""


class Rocks:
    """An open RocksDB, a context manager. `write` is not durable before `sync` returns.

    No local variable here may keep a batch or an iterator alive: a traceback would, and with it the lock.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._db: Rdict | None = None
        self._wal: Rdict | None = None
        self._wal_handle: ColumnFamily | None = None
        self._links: Path | None = None
        _check_fork(path, read_only=read_only)
        access = AccessType.read_only(error_if_log_file_exist=False) if read_only else AccessType.read_write()
        try:
            with _errors(path):
                framing.check(path)
                if read_only:
                    self._links = _links_to(path)
                self._db = Rdict(str(self._links or path), _options(), {WAL: _wal_options()}, access)
                self._wal = self._db.get_column_family(WAL)
                self._wal_handle = self._db.get_column_family_handle(WAL)
        except BaseException:
            self._drop_links()
            raise
        _open_ones.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(KvmetaError) if error is not None else nullcontext():
            self.close()

    def write(self, batch: Batch) -> None:
        """Apply `batch` atomically; it survives a crash of the process, and after `sync` of the machine."""
        changes = WriteBatch(raw_mode=True)
        try:
            for key, value in batch.manifest.items():
                if value is None:
                    changes.delete(key)
                else:
                    changes.put(key, value)
            for key, value in batch.wal:
                changes.put(key, value, self._wal_handle)
            if batch.wal_trim is not None and batch.wal_trim[0] < batch.wal_trim[1]:  # else it poisons the DB
                changes.delete_range(*batch.wal_trim, self._wal_handle)
            with _errors(self._path):
                self._open().write(changes)
        finally:
            del changes

    def sync(self) -> None:
        """Make everything written so far durable."""
        with _errors(self._path):
            self._open().flush_wal(True)

    def manifest(self) -> dict[bytes, bytes]:
        """Return the manifest's rows."""
        with _errors(self._path):
            return dict(cast(Any, self._open().items()))

    def wal(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the WAL's records in order from key `first` on."""
        assert self._wal is not None
        with _errors(self._path):
            items: Any = self._wal.items(from_key=first)
        try:
            while True:
                with _errors(self._path):
                    item = next(items, None)
                if item is None:
                    return
                yield item
        finally:
            del items

    def last_wal_key(self) -> bytes | None:
        """Return the key of the WAL's last record."""
        assert self._wal is not None
        with _errors(self._path):
            return next(cast(Any, self._wal.keys(backwards=True)), None)

    def close(self) -> None:
        """Close; nothing is flushed but what was synced is on disk."""
        _open_ones.discard(self)
        families = [family for family in (self._wal, self._db) if family is not None]
        self._db = self._wal = self._wal_handle = None
        try:
            with ExitStack() as closing:  # all of them, whatever one raises; the WAL's handle first
                closing.enter_context(_errors(self._path))
                while families:
                    closing.callback(families.pop().close)
        finally:
            self._drop_links()

    def _drop_links(self) -> None:
        if self._links is not None:
            shutil.rmtree(self._links, ignore_errors=True)  # what is left lies in the temporary directory
            self._links = None

    def _open(self) -> Rdict:
        if self._db is None:
            raise UnavailableError(f"{self._path}: the log is closed")
        return self._db


_user_pid: int | None = None


_open_ones: weakref.WeakSet[Rocks] = weakref.WeakSet()


def _disown() -> None:
    """In a fork of a process that used RocksDB, never let it wait for its threads, which are not there.

    It would when an inherited database is freed, and when the process ends (a static destructor joins them).
    So databases are kept, and C's exit handlers end, after flushing, in `_exit(status)`: registered last,
    these two run first, in the opposite order.
    """
    if _user_pid is None:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)
        libc.__cxa_atexit(libc.fflush, None, None)
    for rocks in _open_ones:
        for inherited in (rocks._db, rocks._wal, rocks._wal_handle):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


os.register_at_fork(after_in_child=_disown)


def _check_fork(path: Path, *, read_only: bool) -> None:
    """Refuse to write in a fork of a process that used RocksDB: its threads are gone, so it would hang."""
    global _user_pid
    if _user_pid is None:
        _user_pid = os.getpid()
    elif _user_pid != os.getpid() and not read_only:
        raise ReadOnlyError(
            f"{path}: this process was forked from one that had a store open, and cannot write to any; "
            'start it by "spawn" or "forkserver", or open with mode="r"'
        )


def family_names(path: Path) -> list[str]:
    """Return the names of the column families on disk; none where there is no database."""
    if not (path / "CURRENT").exists():
        return []
    with _errors(path):
        framing.check(path)
        return Rdict.list_cf(str(path), _options())


def _links_to(path: Path) -> Path:
    """Return a directory of links to a database's files, to be opened read-only in its stead.

    Even read-only, RocksDB writes its diary and rocksdict its configuration into the directory it opens. So
    readers work on read-only file systems and never touch what the writer may be sealing.
    """
    if not path.is_dir():
        raise CorruptionError(f"{path} is missing; restore the store from a copy", path)
    files = [file for file in path.iterdir() if not filenames.is_scratch(file)]
    links = Path(tempfile.mkdtemp(prefix="kvmeta-"))
    for file in files:
        (links / file.name).symlink_to(file)
    return links


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(
        DBRecoveryMode.point_in_time()
    )  # the chain and the mark judge what it finds
    options.set_paranoid_checks(True)
    options.set_atomic_flush(True)  # so that one family's flush frees the log files of both
    options.set_max_total_wal_size(512 * _MIB)
    options.set_write_buffer_size(8 * _MIB)
    options.set_compression_type(DBCompressionType.none())
    options.set_keep_log_file_num(1)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_max_open_files(64)
    options.set_max_file_opening_threads(1)  # of a few files; by default 16 threads start at each open
    options.set_max_background_jobs(2)
    return options


def _wal_options() -> Options:
    options = Options(raw_mode=True)
    options.set_write_buffer_size(128 * _MIB)  # trimmed before it fills, so RocksDB writes records only once
    options.set_max_write_buffer_number(4)
    options.set_compression_type(DBCompressionType.none())
    return options


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what RocksDB raises into a KvmetaError that names the directory."""
    try:
        yield
    except KvmetaError:
        raise
    except OSError as error:
        raise from_os_error(error, "opening", path) from error
    except Exception as error:
        text = str(error).strip()
        told = f"{path}: {text}"
        lower = text.lower()
        if "no space left" in lower or "disk quota" in lower:
            raise StorageFullError(f"{told}. Free space on the device, then open the store again") from error
        if "lock" in lower and ("resource temporarily unavailable" in lower or "lock hold" in lower):
            raise StoreLockedError(f"{told}. Another process has the store open") from error
        if "read-only file system" in lower or "permission denied" in lower:
            raise ReadOnlyError(f'{told}. Check the permissions, or open with mode="r"') from error
        if "corruption" in lower or "no such file" in lower or "not found" in lower or "checksum" in lower:
            raise CorruptionError(f"the log is damaged: {told}", path) from error
        raise UnavailableError(f"the log failed: {told}") from error
