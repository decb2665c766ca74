"""The measured blocks of README.md and docs/operating.md, made from bench/results: `python -m bench.readme`.

    page                block        made from
    README.md           figures      compare.json, scale.json: the three that a newcomer asks for
    docs/operating.md   cluster      cluster.json: what a death, growth and replicas cost
    docs/operating.md   placement    placement.json: balance and movement by the number of nodes

A block stands between `<!-- measured: NAME -->` and `<!-- end of measured -->`. A test checks that each page
holds what this makes, so neither can drift from the other. bench/results_page.py makes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import results_page
from bench.markdown import prose, table
from bench.sections import Section, answers, median, read, series, sizes
from bench.table import number

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
OPERATING = ROOT / "docs" / "operating.md"


@dataclass(frozen=True)
class Block:
    """One measured block: its page, the benchmarks it is made from, and what makes its lines."""

    name: str
    page: Path
    benchmarks: tuple[str, ...]
    lines: Callable[..., list[str]]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Return what matches the block between its markers."""
        opening = f"<!-- measured: {self.name} -->\n"
        return re.compile(f"({opening}).*?(<!-- end of measured -->)", re.DOTALL)

    def text(self, sections: dict[str, Section]) -> str:
        """Return the block, empty while one of its benchmarks has not been run in full."""
        if not set(self.benchmarks) <= set(sections):
            return ""
        return "\n".join(self.lines(*(sections[name] for name in self.benchmarks))) + "\n"

    def updated(self, page: str, sections: dict[str, Section]) -> str:
        """Return the page's text with the block made anew."""
        text = self.text(sections)
        return self.pattern.sub(lambda match: match[1] + text + match[2], page)


def figures(compare: Section, scale: Section) -> list[str]:
    """Return the README's three figures: speed, memory, growth."""
    told = answers(compare)
    kvmeta, redis, against = told["system-kvmeta"], told["system-redis"], told["kvmeta-redis"]
    small = next(each for each in against["beside"] if each["name"].startswith("batches of 256:"))
    told_sizes = sizes(scale)
    warm = [(rows, answer) for rows, answer in told_sizes if series(answer, "warm, over gRPC")]
    (fewest, first), (most, last) = warm[0], warm[-1]
    largest, coldest = told_sizes[-1]
    items = (
        f"**{median(kvmeta, 'batches of 16,384')} million lookups a second over gRPC** in batches of 16,384:"
        f" {number(against['measured']['median'])} times as many as Redis 7. In batches of 256 it is"
        f" {number(small['median'])} times as many, so ask for many at once"
        " ([results](bench/RESULTS.md#side-by-side)).",
        f"**{median(kvmeta, 'memory')} bytes of memory an entry**, besides the page cache, and"
        f" {median(kvmeta, 'disk')} on disk. Redis 7 keeps {median(redis, 'memory')} bytes an entry in memory"
        " ([results](bench/RESULTS.md#side-by-side)).",
        f"**From {fewest:,} to {most:,} entries a warm lookup over gRPC goes from"
        f" {median(first, 'warm, over gRPC')} to {median(last, 'warm, over gRPC')} ns an ID.** At {largest:,}"
        f" entries a cold one costs {median(coldest, 'cold, batches of 4,096: device reads', '/ID')} reads"
        " of the disk ([results](bench/RESULTS.md#growth)).",
    )
    machine = compare["machine"]
    shared = f"Measured on {machine['cores']} cores ({machine['cpu']}) that servers and clients share."
    return [*(line for item in items for line in prose(f"- {item}", "  ")), "", *prose(shared)]


# What an operator plans with; bench/RESULTS.md has all of it.
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
)


def cluster(section: Section) -> list[str]:
    """Return what happened to a cluster on one machine."""
    told = answers(section)
    rows = []
    for key, label in CLUSTER_ROWS:
        figure = told[key]["measured"]
        spread = f"{number(figure['min'])} to {number(figure['max'])}" if len(figure["rounds"]) > 1 else ""
        rows.append((label, f"{number(figure['median'])} {figure['unit']}".rstrip(), spread))
    machine = section["machine"]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores shared with nodes, etcd and the client,"
        f" {machine['kernel']}, Python {machine['python']}, {section['date'][:10]}; medians of interleaved"
        " rounds. `make bench-cluster` repeats it (quick form)."
    )
    return [*table(("", "median", "least to most"), rows), *prose(where)]


def placement(section: Section) -> list[str]:
    """Return balance and movement by the number of nodes."""
    told = answers(section)
    partitions = [f"{section['sizes'][name]:,}" for name in ("partitions", "fine_partitions")]
    rows = []
    for count in section["sizes"]["nodes"]:
        moved = (
            median(told["movement"], f"{each} partitions, {count} nodes, one {what}")
            for each in partitions
            for what in ("added", "removed")
        )
        rows.append((f"{count:,}", median(told["balance"], f"{count} nodes"), *moved))
    head = (f"{what}, {each} partitions" for each in partitions for what in ("one joins", "one leaves"))
    return table(("nodes", "entries of the fullest node, of the mean", *head), rows)[:-1]


BLOCKS = (
    Block("figures", README, ("compare", "scale"), figures),
    Block("cluster", OPERATING, ("cluster",), cluster),
    Block("placement", OPERATING, ("placement",), placement),
)


def main() -> None:
    """Write the blocks, and what else is made from the results."""
    sections = read()
    for block in BLOCKS:
        block.page.write_text(block.updated(block.page.read_text(), sections))
    results_page.main()


if __name__ == "__main__":
    main()
