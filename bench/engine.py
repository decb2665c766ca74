"""The engine's benchmark: `python -m bench.engine --quick`, `--full` or `--tiny`.

    lookups.py     present, absent, two threads, growth, upper runs, batch of one, against RocksDB
    footprint.py   disk, memory, opening
    writes.py      durable puts, against RocksDB, bulk load, scan

How a benchmark reports is in report.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import footprint, lookups, report, writes
from bench.stores import Sizes, Stores
from bench.table import Answer

FORMS = {
    # Every path once, in seconds: what the unit tests run.
    "tiny": Sizes(
        rows=20_000, small_rows=5_000, least_rows=2_000, memtable_rows=2_048, lookup_rounds=2,
        lookup_batches=4, peer_batches=4, single_calls=20, put_rounds=1, put_rows=20_000, load_rounds=1,
        load_rows=20_000, open_rounds=1, scan_rounds=1, batch_rows=512,
    ),
    # Small memtables, so that merges happen within three million entries.
    "quick": Sizes(
        rows=8_000_000, small_rows=1_000_000, least_rows=None, memtable_rows=131_072, lookup_rounds=5,
        lookup_batches=64, peer_batches=16, single_calls=1_000, put_rounds=2, put_rows=3_000_000,
        load_rounds=3, load_rows=8_000_000, open_rounds=3, scan_rounds=3,
    ),
    "full": Sizes(
        rows=60_000_000, small_rows=4_000_000, least_rows=1_000_000, memtable_rows=1 << 20, lookup_rounds=9,
        lookup_batches=128, peer_batches=32, single_calls=5_000, put_rounds=3, put_rows=12_000_000,
        load_rounds=3, load_rows=16_000_000, open_rounds=5, scan_rounds=3,
    ),
}  # fmt: skip

QUESTIONS = (
    "lookup", "two-threads", "growth", "upper-runs", "single", "rocksdict-lookup",
    "disk", "memory", "open", "put", "rocksdict-put", "load", "scan",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form of the benchmark; return the exit status."""
    return report.run("engine", FORMS, _measure, arguments)


def _measure(form: str, sizes: Sizes, data: Path) -> Iterator[Answer]:
    stores = Stores(data, sizes)
    stores.upper()
    for kind in ("block cache", "plain", "cuckoo"):
        stores.peer(kind, stores.sizes.rows if kind == "block cache" else stores.sizes.small_rows)
    stores.small()
    stores.least()
    os.sync()  # the writing back of new stores is no part of what follows
    yield from lookups.answers(stores, growth_judged=form == "full")
    yield from footprint.answers(stores)
    yield from writes.answers(stores)


if __name__ == "__main__":
    sys.exit(main())
