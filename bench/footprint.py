"""The engine's footprint: what an entry costs on disk and in memory, and how long a store takes to open.

Anonymous memory is measured in processes of their own, for a benchmark's own arrays would drown it: one opens
an empty store, one the store in question, both look up as much, and the difference is the store's. The
memtable is left out, and so is what the allocator keeps after the WAL was replayed (`malloc_trim` gives it
back): both are bounded by `memtable_rows_max`, whatever the store holds. They are told beside the answer.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import kvmeta
from bench.proc import status_bytes
from bench.stores import Stores
from bench.table import Answer, Series
from bench.timing import Progress, seconds
from bench.workloads import Catalogue, Queries
from kvmeta.engine.options import EngineOptions

_BATCHES, _BATCH_ROWS = 64, 4096


def answers(stores: Stores) -> Iterator[Answer]:
    """Measure and yield the answers about disk, memory and opening."""
    yield _disk(stores)
    yield _memory(stores)
    yield _open(stores)


def _disk(stores: Stores) -> Answer:
    figures = {}
    for path, options in ((stores.big(), None), (stores.upper(), stores.still_options())):
        with kvmeta.open(path, options=options) as store:
            dataset = store.stats().datasets[0]
            figures[path] = dataset.disk_bytes / dataset.rows
    big, upper = figures.items()
    whole = sum(file.stat().st_blocks * 512 for file in big[0].rglob("*") if file.is_file())
    return Answer(
        "disk", f"disk, {stores.sizes.rows:,} tar-packed files", 36, Series("segments", "B/entry", (big[1],)),
        beside=[
            Series("all files, log and all", "B/entry", (whole / stores.sizes.rows,)),
            Series("with 8 upper runs, segments", "B/entry", (upper[1],)),
        ],
    )  # fmt: skip


def _memory(stores: Stores) -> Answer:
    """Judge what the store says of its tables and what the system says of the process, whichever is more."""
    sizes = stores.sizes
    with Progress("memory"):
        seed, memtable_rows = stores.catalogue.seed, sizes.memtable_rows
        empty = child(stores.scratch(), 0, seed, memtable_rows)
        big = child(stores.big(), sizes.rows, seed, memtable_rows)
        upper = child(stores.upper(), sizes.upper_rows, seed, memtable_rows)
    shutil.rmtree(stores.scratch(), ignore_errors=True)
    in_runs = sizes.upper_rows - sizes.memtable_rows
    shares = {
        "tables, compacted": big["table_bytes"] / sizes.rows,
        "tables, 8 upper runs": upper["table_bytes"] / in_runs,
        "anonymous memory, compacted": (_lasting(big) - _lasting(empty)) / sizes.rows,
        "anonymous memory, 8 upper runs": (_lasting(upper) - _lasting(empty)) / in_runs,
    }
    most = Series("the largest of these", "B/entry", (max(shares.values()),))
    beside = [Series(name, "B/entry", (share,)) for name, share in shares.items()]
    for name, size in (
        ("a process with an empty store", empty["anonymous_bytes"]),
        (f"left out: memtable of {sizes.memtable_rows:,} rows", upper["memtable_bytes"]),
        ("left out: freed by the WAL's replay, kept by the allocator", upper["freed_bytes"]),
    ):
        beside.append(Series(name, "MB", (size / 1e6,)))
    return Answer("memory", "memory besides memtable and page cache", 0.3, most, beside=beside)


def _lasting(figures: dict[str, int]) -> int:
    return figures["anonymous_bytes"] - figures["memtable_bytes"]


def _open(stores: Stores) -> Answer:
    rounds, replays = [], []
    still = stores.still_options()
    with Progress("opening", stores.sizes.open_rounds) as progress:
        for done in range(stores.sizes.open_rounds):
            rounds.append(_open_once(stores.big(), None))
            replays.append(_open_once(stores.upper(), still))
            progress(done + 1)
    replay = f"with 8 upper runs and {stores.sizes.memtable_rows:,} rows of WAL"
    return Answer(
        "open", f"opening {stores.sizes.rows:,} rows", 1, Series("open", "s", tuple(rounds)),
        beside=[Series(replay, "s", tuple(replays))],
    )  # fmt: skip


def _open_once(path: Path, options: EngineOptions | None) -> float:
    opened: list[kvmeta.Store] = []
    spent = seconds(lambda: opened.append(kvmeta.open(path, options=options)))
    opened[0].close()
    return spent


def child(path: Path, rows: int, seed: int, memtable_rows: int) -> dict[str, int]:
    """Measure a store in a process of its own; return "anonymous_bytes", "table_bytes" and more."""
    words = [str(path), str(rows), str(seed), str(memtable_rows)]
    command = [sys.executable, "-m", "bench.footprint", *words]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout))


def _measure(path: str, rows: int, seed: int, memtable_rows: int) -> dict[str, int]:
    """Open a store, look up, and return its figures and this process's anonymous memory."""
    options = EngineOptions(
        background=False, memtable_rows_max=memtable_rows, batch_rows_max=min(memtable_rows, 65_536)
    )
    queries, random = Queries(Catalogue(seed), max(1, rows)), np.random.default_rng(3)
    with kvmeta.open(path, options=options) as store:
        dataset = store.dataset()
        for _ in range(_BATCHES):
            dataset.lookup(queries.batch(random, _BATCH_ROWS).ids)
        figures = store.stats().datasets[0]
        before = status_bytes("self", "RssAnon")
        ctypes.CDLL(None).malloc_trim(0)
        after = status_bytes("self", "RssAnon")
        return {
            "anonymous_bytes": after,
            "freed_bytes": before - after,
            # An empty memtable's slots count as used but no page of them was ever touched.
            "memtable_bytes": figures.memtable_bytes if figures.memtable_rows else 0,
            "table_bytes": figures.table_bytes,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure one store's memory; bench.engine calls it.")
    parser.add_argument("path")
    parser.add_argument("numbers", type=int, nargs=3, help="rows, seed, memtable rows")
    given = parser.parse_args()
    print(json.dumps(_measure(given.path, *given.numbers)))
