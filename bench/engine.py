"""The engine's benchmark: `python -m bench.engine --quick`, `--full` or `--tiny`.

    lookups.py     present, absent, two threads, growth, upper runs, batch of one, against RocksDB
    footprint.py   disk, memory, opening
    writes.py      durable puts, against RocksDB, bulk load, scan

Prints a table with every question, its target and what was measured, and writes the raw rounds to
bench/results/engine.json. Stores are built once below bench/data. A missed target is named; with --full it is
also the exit status. The tiny form judges nothing: it shows that the benchmark still runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench import footprint, lookups, table, writes
from bench.stores import Sizes, Stores
from bench.table import Answer

_HERE = Path(__file__).resolve().parent

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
    given = _parser().parse_args(arguments)
    sizes = FORMS[given.form]
    stores = Stores(given.data, sizes)
    start = time.monotonic()
    answers = _measure(stores, growth_judged=given.form == "full")
    if given.form == "tiny":
        answers = [replace(answer, judged=False) for answer in answers]
    print(f"kvmeta engine, {given.form}: {machine_line()}\n")
    print(table.table(answers))
    table.write(given.results, given.form, asdict(sizes), answers)
    missed = table.misses(answers)
    print()
    for answer in missed:
        print(f"short: {answer.question}: {answer.measured.text()}, target {answer.target_text}")
    judged = sum(answer.judged for answer in answers)
    spent = time.monotonic() - start
    print(f"{judged - len(missed)} of {judged} targets met; {spent:.0f} s; rounds in {given.results}")
    return 1 if missed and given.form == "full" else 0


def _measure(stores: Stores, *, growth_judged: bool) -> list[Answer]:
    stores.upper()
    for kind in ("block cache", "plain", "cuckoo"):
        stores.peer(kind, stores.sizes.rows if kind == "block cache" else stores.sizes.small_rows)
    stores.small()
    stores.least()
    os.sync()  # the writing back of new stores is no part of what follows
    answers = list(lookups.answers(stores, growth_judged=growth_judged))
    answers += footprint.answers(stores)
    answers += writes.answers(stores)
    return answers


def machine_line() -> str:
    """Return what is measured on, for the first line of a report."""
    machine = table.machine()
    memory = machine["memory_bytes"] / (1 << 30)
    return f"{machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, Python {machine['python']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description="Measure the engine.")
    form = parser.add_mutually_exclusive_group(required=True)
    for name, sizes in FORMS.items():
        form.add_argument(
            f"--{name}", dest="form", action="store_const", const=name, help=f"{sizes.rows:,} rows"
        )
    parser.add_argument("--data", type=Path, default=_HERE / "data", help="where stores are built and kept")
    parser.add_argument(
        "--results", type=Path, default=_HERE / "results" / "engine.json", help="the JSON file to update"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
