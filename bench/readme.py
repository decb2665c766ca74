"""The README's measured tables, made from the files in bench/results: `python -m bench.readme`.

    compare.json    <!-- measured: make bench-compare-full -->
    scale.json      <!-- measured: make bench-scale-full -->
    engine.json     <!-- measured: make bench-engine-full -->
    service.json    <!-- measured: make bench-service-full -->
    cluster.json    <!-- measured: make bench-cluster-full -->

A test checks that the README holds what this makes, so neither can drift from the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import results_page
from bench.table import number

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"


@dataclass(frozen=True)
class Block:
    """One measured block: its benchmark, who shares the cores, and what its table is made from.

    `rows`: an answer's key and what to call it. `body`: makes the lines instead, from the form's section.
    """

    name: str
    sharers: str
    rows: tuple[tuple[str, str], ...] = ()
    body: Callable[[dict[str, Any]], list[str]] | None = None

    @property
    def results(self) -> Path:
        """Return the path of the benchmark's results."""
        return RESULTS / f"{self.name}.json"

    @property
    def pattern(self) -> re.Pattern[str]:
        """Return what matches the block between its markers."""
        opening = f"<!-- measured: make bench-{self.name}-full -->\n"
        return re.compile(f"({opening}).*?(<!-- end of measured -->)", re.DOTALL)


# What a newcomer wants to know; all of it is in the results files.
ENGINE_ROWS = (
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
SERVICE_ROWS = (
    ("lookup-4096", "lookups from one client process, 60M rows, batches of 4,096"),
    ("lookup-16384", "the same, batches of 16,384"),
    ("redis-lookup-4096", "times as fast as Redis MGET (one calling thread each), batches of 4,096"),
    ("redis-lookup-16384", "the same, batches of 16,384"),
    ("echo-lookup-4096", "share of what a gRPC echo of as many bytes carries, batches of 4,096"),
    ("echo-lookup-16384", "the same, batches of 16,384"),
    ("put-4096", "durable puts, batches of 4,096, with flushes and merges"),
    ("put-16384", "the same, batches of 16,384"),
    ("redis-put-4096", "times as fast as Redis MSET with `appendfsync always`, batches of 4,096"),
    ("redis-put-16384", "the same, batches of 16,384"),
    ("single", "one get against a gRPC echo, p50"),
    ("crowd", "p99 against p50 of 64 callers, batches of 256"),
    ("flood-memory", "server's memory under 1,000 idle connections and 300 slow calls, more by"),
    ("flood-p99", "a healthy client's p99 under them, times"),
)
CLUSTER_ROWS = (
    ("death-lost", "kill -9 of one of 3 nodes under load: writes lost, wrong answers, unequal digests"),
    ("death-gap", "the longest that no read or write succeeded"),
    ("without-etcd", "a minute without etcd: errors and wrong answers"),
    ("growth-lost", "3, 5, 3 nodes under load, 5 M entries: entries lost or resurrected"),
    ("growth-errors", "errors that the client saw"),
    ("growth-movement", "replicas moved in a step, against the least that must"),
    ("routing-one", "lookups a CPU second, 3 nodes with one replica, against a single server"),
    ("routing-fast", "the same, three replicas, fast reads"),
    ("routing-quorum", "the same, three replicas, quorum reads"),
)  # fmt: skip
BLOCKS = (
    Block("compare", "the clients", body=results_page.side_by_side),
    Block("scale", "the callers", body=results_page.growth),
    Block("engine", "the caller", ENGINE_ROWS),
    Block("service", "the clients", SERVICE_ROWS),
    Block("cluster", "nodes, etcd and the client", CLUSTER_ROWS),
)


def measured(block: Block, results: dict[str, Any]) -> str:
    """Return the block's Markdown for the full form of the benchmark."""
    form = results["full"]
    machine = form["machine"]
    lines = block.body(form) if block.body is not None else _rows(block, form)
    lines.append(
        f"{machine['cpu']}, {machine['cores']} cores shared with {block.sharers}, {machine['kernel']}, "
        f"Python {machine['python']}, {form['date'][:10]}; medians of interleaved rounds. "
        f"`make bench-{block.name}` repeats it (quick form)."
    )
    return "\n".join(lines) + "\n"


def _rows(block: Block, form: dict[str, Any]) -> list[str]:
    answers = {answer["key"]: answer for answer in form["answers"]}
    lines = ["| | median | least to most |", "|---|---|---|"]
    for key, label in block.rows:
        figure = answers[key]["measured"]
        spread = f"{number(figure['min'])} to {number(figure['max'])}" if len(figure["rounds"]) > 1 else ""
        lines.append(f"| {label} | {number(figure['median'])} {figure['unit']} | {spread} |")
    return [*lines, ""]


def updated(readme: str, block: Block, results: dict[str, Any]) -> str:
    """Return the README with a block made anew."""
    text = measured(block, results)
    return block.pattern.sub(lambda match: match[1] + text + match[2], readme)


def read(block: Block) -> dict[str, Any] | None:
    """Return the block's results, None where the full form has not been run."""
    results = json.loads(block.results.read_text()) if block.results.exists() else {}
    return results if "full" in results else None


def main() -> None:
    """Write the README's blocks, and what else is made from the results."""
    readme = README.read_text()
    for block in BLOCKS:
        results = read(block)
        if results is not None:
            readme = updated(readme, block, results)
    README.write_text(readme)
    results_page.main()


if __name__ == "__main__":
    main()
