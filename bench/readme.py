"""The README's measured table, made from bench/results/engine.json: `python -m bench.readme`.

A test checks that the README holds what this makes, so neither can drift from the other.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench.table import number

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "engine.json"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- measured: make bench-engine-full -->\n).*?(<!-- end of measured -->)", re.DOTALL)

# What a newcomer wants to know; all of it is in the results file.
ROWS = (
    ("lookup", "lookup, 60M rows, batches of 4,096, one thread"),
    ("two-threads", "two threads against one"),
    ("growth", "cost of a lookup at 60M rows against 4M"),
    ("upper-runs", "lookup under a full memtable and 8 upper runs"),
    ("single", "batch of one"),
    ("rocksdict-lookup", "times as fast as RocksDB's multi-get (rocksdict, in process)"),
    ("put", "durable put, batches of 4,096, with flushes and merges"),
    ("rocksdict-put", "times as fast as RocksDB's synced batches"),
    ("load", "bulk load, unsorted"),
    ("scan", "scan"),
    ("disk", "disk, tar-packed files"),
    ("memory", "memory besides memtable and page cache"),
    ("open", "opening 60M rows"),
)


def measured(results: dict[str, Any]) -> str:
    """Return the block's Markdown for the full form of the benchmark."""
    form = results["full"]
    machine = form["machine"]
    answers = {answer["key"]: answer for answer in form["answers"]}
    lines = ["| | median | least to most |", "|---|---|---|"]
    for key, label in ROWS:
        figure = answers[key]["measured"]
        spread = f"{number(figure['min'])} to {number(figure['max'])}" if len(figure["rounds"]) > 1 else ""
        lines.append(f"| {label} | {number(figure['median'])} {figure['unit']} | {spread} |")
    lines.append("")
    lines.append(
        f"{machine['cpu']}, {machine['cores']} cores shared with the caller, {machine['kernel']}, "
        f"Python {machine['python']}, {form['date'][:10]}; medians of interleaved rounds. "
        "`make bench-engine` repeats it (quick form)."
    )
    return "\n".join(lines) + "\n"


def updated(readme: str, results: dict[str, Any]) -> str:
    """Return the README with its block made anew."""
    block = measured(results)
    return BLOCK.sub(lambda match: match[1] + block + match[2], readme)


def main() -> None:
    """Write the README's block."""
    README.write_text(updated(README.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
