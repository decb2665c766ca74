"""The one module that knows RocksDB: two column families, atomic batches, group fsync, typed errors.

RocksDB is the store's log and catalogue. Its traps shape this file: options of every column family are given
at every open; handles are dropped before close, for a live one keeps RocksDB's lock; `flush_wal` releases the
GIL while `write` with sync would hold it.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocksdict import AccessType, ColumnFamily, DBCompressionType, DBRecoveryMode, Options, Rdict, WriteBatch

from kvmeta.errors import (
    CorruptionError,
    KvmetaError,
    ReadOnlyError,
    StorageFullError,
    StoreLockedError,
    UnavailableError,
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
    """An open RocksDB. `write` is not durable before `sync` returns."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        _check_fork(path, read_only=read_only)
        options = _options()
        families = {WAL: _wal_options()}
        access = AccessType.read_only(error_if_log_file_exist=False) if read_only else AccessType.read_write()
        with _errors(path):
            self._db: Rdict | None = Rdict(str(path), options, families, access)
            self._wal: Rdict | None = self._db.get_column_family(WAL)
            self._wal_handle: ColumnFamily | None = self._db.get_column_family_handle(WAL)
        _open_ones.add(self)

    def write(self, batch: Batch) -> None:
        """Apply `batch` atomically; it survives a crash of the process, and after `sync` of the machine."""
        db = self._open()
        changes = WriteBatch(raw_mode=True)
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
            db.write(changes)

    def sync(self) -> None:
        """Make everything written so far durable."""
        with _errors(self._path):
            self._open().flush_wal(True)

    def manifest(self) -> dict[bytes, bytes]:
        """Return the manifest's rows."""
        with _errors(self._path):
            items: Any = self._open().items()
            return dict(items)

    def wal(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the WAL's records in order from key `first` on."""
        assert self._wal is not None
        with _errors(self._path):
            items: Any = self._wal.items(from_key=first)
        while True:
            with _errors(self._path):
                item = next(items, None)
            if item is None:
                return
            yield item

    def last_wal_key(self) -> bytes | None:
        """Return the key of the WAL's last record."""
        assert self._wal is not None
        with _errors(self._path):
            keys: Any = self._wal.keys(backwards=True)
            return next(keys, None)

    def memory_bytes(self) -> int:
        """Return the bytes of RocksDB's own memtables."""
        if self._db is None or self._wal is None:
            return 0
        name = "rocksdb.size-all-mem-tables"
        return sum(family.property_int_value(name) or 0 for family in (self._db, self._wal))

    def close(self) -> None:
        """Close; nothing is flushed but what was synced is on disk."""
        if self._db is None:
            return
        _open_ones.discard(self)
        db, wal = self._db, self._wal
        self._db = self._wal = self._wal_handle = None
        with _errors(self._path):
            if wal is not None:
                wal.close()
            db.close()

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
