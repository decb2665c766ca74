"""The peer: RocksDB through rocksdict, as a store of the same entries (16-byte keys, 24-byte values).

It is tuned for the purpose: raw mode, no compression, compacted, everything warm, keys of a batch sorted, for
writes too. A batch must become a list of `bytes` and its answer an array again, for that is what a caller
with numpy columns pays; the bare multi-get is measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

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

import kvmeta

MIB = 1 << 20
Kind = Literal["block cache", "block mmap", "plain", "cuckoo"]


class Columns(NamedTuple):
    """A lookup's answer: found bool[n], locations LOCATION[n]."""

    found: NDArray[np.bool_]
    locations: NDArray[np.void]


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
        order = _key_order(ids)
        keys = ids[order].tolist()
        start = time.perf_counter()
        values = self._db.get(keys)
        self.bare_s += time.perf_counter() - start
        return _columns(values, order)

    def close(self) -> None:
        """Close the table."""
        self._db.close()


def _key_order(ids: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the order of the keys by their first 8 bytes; the few that tie may stand either way."""
    return np.argsort(ids.view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64))


def _columns(values: list[bytes | None], order: NDArray[np.int64]) -> Columns:
    n = len(values)
    found, locations = np.ones(n, np.bool_), np.zeros(n, kvmeta.LOCATION)
    try:
        locations[order] = np.frombuffer(b"".join(values), kvmeta.LOCATION)  # type: ignore[arg-type]
    except TypeError:  # some are absent
        here = order[np.fromiter((value is not None for value in values), np.bool_, n)]
        found[:] = False
        found[here] = True
        packed = b"".join([value for value in values if value is not None])
        locations[here] = np.frombuffer(packed, kvmeta.LOCATION)
    return Columns(found, locations)


def build(
    path: Path, kind: Kind, rows: int, batches: Iterable[tuple[NDArray[np.void], NDArray[np.void]]]
) -> None:
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
        order = _key_order(ids)  # neighbours share the path through the memtable's skip list
        self._db.write(_write_batch(ids[order], locations[order]), self._synced)

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
