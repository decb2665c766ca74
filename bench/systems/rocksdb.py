"""RocksDB through rocksdict, as a store of the same entries (16-byte keys, 24-byte values).

It is tuned for the purpose: raw mode, no compression, compacted, everything warm, keys of a batch sorted, for
writes too. A batch must become a list of `bytes` and its answer an array again, for that is what a caller
with numpy columns pays; the bare multi-get is measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    CuckooTableOptions,
    DBCompressionType,
    MemtableFactory,
    Options,
    PlainTableFactoryOptions,
    Rdict,
    SliceTransform,
    WriteBatch,
    WriteOptions,
)

from bench.systems.system import (
    Batches,
    Client,
    Columns,
    Place,
    System,
    halves,
    package_version,
    unordered,
)

MIB = 1 << 20
Kind = Literal["block cache", "block mmap", "plain", "cuckoo"]


class Table:
    """An open, read-only table of `rows` entries. `bare_s` adds up the time spent in multi-get alone."""

    def __init__(self, path: Path, kind: Kind, rows: int) -> None:
        self._db = Rdict(str(path), table_options(kind, rows), access_type=AccessType.read_only())
        self.bare_s = 0.0

    def warm(self) -> int:
        """Read everything, so that all blocks are in memory; return the number of entries."""
        return sum(1 for _ in self._db.keys())  # noqa: SIM118 - no dictionary

    def lookup(self, ids: NDArray[np.void]) -> Columns:
        """Return the locations of `ids` by one multi-get of sorted keys."""
        order = np.argsort(halves(ids))
        keys = ids[order].tolist()
        start = time.perf_counter()
        values = self._db.get(keys)
        self.bare_s += time.perf_counter() - start
        return unordered(values, order)

    def close(self) -> None:
        """Close the table."""
        self._db.close()


def build(path: Path, kind: Kind, rows: int, batches: Batches) -> None:
    """Write a table of all `batches`, compacted."""
    options = table_options(kind, rows)
    options.set_memtable_factory(MemtableFactory.vector())  # the quickest to fill; slow only to be read
    options.set_allow_concurrent_memtable_write(False)
    db = Rdict(str(path), options)
    unlogged = WriteOptions()
    unlogged.disable_wal = True
    for ids, locations in batches:
        db.write(_write_batch(ids, locations), unlogged)
    db.flush()
    db.compact_range(None, None)
    db.close()


class Writer:
    """A database that takes durable batches: each is synced before `put` returns.

    Settled rates measured for 1.5 M entries on 2 cores, M entries/s: memtables of 128 MiB 0.31, of 64 MiB
    0.42, then sorted batches 0.53, memtables of 16 MiB 0.71, recycled log files and pipelined writes 0.76.
    Vector memtables come to 0.78, but each read would have to sort them: no store for lookups.
    """

    def __init__(self, path: Path) -> None:
        options = table_options("block cache", 1 << 20)
        options.set_write_buffer_size(16 * MIB)
        options.set_recycle_log_file_num(4)
        options.set_enable_pipelined_write(True)
        self._db = Rdict(str(path), options)
        self._synced = WriteOptions()
        self._synced.sync = True

    def put(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> None:
        """Write a batch durably."""
        order = np.argsort(halves(ids))  # neighbours share the path through the memtable's skip list
        self._db.write(_write_batch(ids[order], locations[order]), self._synced)

    def lookup(self, ids: NDArray[np.void]) -> Columns:
        """Return the locations of `ids` by one multi-get of sorted keys."""
        order = np.argsort(halves(ids))
        return unordered(self._db.get(ids[order].tolist()), order)

    def settle(self) -> None:
        """Return when no flush or compaction is under way or due."""
        flushes = ("mem-table-flush-pending", "num-running-flushes")
        compactions = ("compaction-pending", "num-running-compactions")
        while any(self._db.property_int_value(f"rocksdb.{name}") for name in (*flushes, *compactions)):
            time.sleep(0.01)

    def close(self) -> None:
        """Close the database."""
        self._db.close()


@contextmanager
def opened(path: Path, kind: Kind, rows: int) -> Iterator[Table]:
    """Open a table that `build` wrote."""
    opened_table = Table(path, kind, rows)
    try:
        yield opened_table
    finally:
        opened_table.close()


def table_options(kind: Kind, rows: int) -> Options:
    """Return the options that were the quickest of those tried for each kind of table."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())
    options.set_write_buffer_size(128 * MIB)
    options.set_max_write_buffer_number(4)
    options.set_target_file_size_base(256 * MIB)
    options.set_max_background_jobs(2)
    options.set_max_open_files(-1)
    if kind in ("block cache", "block mmap"):
        blocks = BlockBasedOptions()
        blocks.set_block_size(4096)
        blocks.set_bloom_filter(10, False)
        blocks.set_block_cache(Cache(64 * MIB + 96 * rows))  # twice the entries: nothing is ever evicted
        options.set_block_based_table_factory(blocks)
    elif kind == "plain":
        plain = PlainTableFactoryOptions()
        plain.user_key_length = 16
        options.set_prefix_extractor(SliceTransform.create_fixed_prefix(16))
        options.set_plain_table_factory(plain)
    else:
        options.set_cuckoo_table_factory(CuckooTableOptions())
    if kind != "block cache":
        options.set_allow_mmap_reads(True)
    return options


def _write_batch(ids: NDArray[np.void], locations: NDArray[np.void]) -> WriteBatch:
    batch = WriteBatch(raw_mode=True)
    put = batch.put
    for key, value in zip(ids.tolist(), locations.view("V24").tolist(), strict=True):
        put(key, value)
    return batch


class RocksdbClient(Client):
    """A table opened read-only, or an empty database that takes writes; `address`: (path, kind)."""

    def __init__(self, address: tuple[Path, Kind]) -> None:
        path, kind = address
        self._table: Table | None = None
        self._writer: Writer | None = None
        if path.exists():
            self._table = Table(path, kind, _rows(path))
        else:
            self._writer = Writer(path)

    def lookup(self, ids: NDArray[np.void]) -> Columns:
        """Return the locations of `ids` by one multi-get of sorted keys."""
        open_one = self._table or self._writer
        assert open_one is not None
        return open_one.lookup(ids)

    def put(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> None:
        """Write a sorted, synced batch."""
        assert self._writer is not None
        self._writer.put(ids, locations)

    def warm(self) -> bool:
        """Read everything."""
        assert self._table is not None
        return self._table.warm() > 0

    def settle(self) -> None:
        """Wait for flushes and compactions."""
        if self._writer is not None:
            self._writer.settle()

    def close(self) -> None:
        """Close what is open."""
        for each in (self._table, self._writer):
            if each is not None:
                each.close()


class Rocksdb(System):
    """One kind of table, in process."""

    client = RocksdbClient
    threads = (2,)
    packages = ("rocksdict",)
    kind: ClassVar[Kind]

    def version(self) -> str:
        """Return the version of rocksdict; RocksDB is compiled into it."""
        return package_version("rocksdict")

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Name the path: the client opens it."""
        yield Place((directory / "table", self.kind))

    def build(self, directory: Path, batches: Batches) -> None:
        """Write a compacted table."""
        ready = list(batches)
        rows = sum(len(ids) for ids, _ in ready)
        build(directory / "table", self.kind, rows, ready)
        (directory / "table.rows").write_text(str(rows))


class BlockCache(Rocksdb):
    """Block-based tables with a Bloom filter and everything in the block cache: what most people run."""

    key, name, kind = "rocksdb", "RocksDB, block-based with Bloom filter (rocksdict)", "block cache"


class BlockMmap(Rocksdb):
    """The same tables, mapped."""

    key, name, kind = "rocksdb-mmap", "RocksDB, the same, mapped", "block mmap"
    writes = False


class Plain(Rocksdb):
    """Plain tables: a hash index made when the table is opened."""

    key, name, kind = "rocksdb-plain", "RocksDB, plain tables", "plain"
    writes = False
    rows_max = 4_000_000


class Cuckoo(Rocksdb):
    """Cuckoo tables."""

    key, name, kind = "rocksdb-cuckoo", "RocksDB, cuckoo tables", "cuckoo"
    writes = False
    rows_max = 4_000_000


def _rows(path: Path) -> int:
    return int(path.with_suffix(".rows").read_text())
