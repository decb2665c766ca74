"""How evenly entries lie and how much moves: `python -m bench.placement --quick`, `--full` or `--tiny`.

For clusters of 3 to 1,000 nodes: the map is computed as the nodes would, one node is added, and 10^11 entries
are thrown on the partitions (a multinomial draw). No node runs. The results are plotted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import report
from bench.table import Answer, Series
from bench.timing import Progress, seconds
from kvmeta_server.cluster.placement import Candidate, moved, place

REPLICAS = 3
ENTRIES = 10**11


@dataclass(frozen=True)
class Sizes:
    """The clusters of one form."""

    nodes: tuple[int, ...]
    partitions: int
    rows: int = ENTRIES


FORMS = {
    "tiny": Sizes((3, 12), 256),
    "quick": Sizes((3, 5, 12, 30, 100), 4096),
    "full": Sizes((3, 4, 5, 8, 12, 20, 30, 50, 100, 200, 300, 500, 1000), 4096),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form; return the exit status."""
    return report.run("placement", FORMS, _measure, arguments)


def _measure(form: str, sizes: Sizes, _: Path) -> Iterator[Answer]:
    random = np.random.default_rng(1)
    loads, entries, moves, times = [], [], [], []
    with Progress("placing", len(sizes.nodes)) as progress:
        for done, count in enumerate(sizes.nodes):
            nodes = [Candidate(i, f"node-{i}", f"zone-{i % min(count, 12)}") for i in range(count + 1)]
            times.append(seconds(lambda nodes=nodes: place(nodes[:count], sizes.partitions, REPLICAS)))  # noqa: B023
            before = place(nodes[:count], sizes.partitions, REPLICAS)
            after = place(nodes, sizes.partitions, REPLICAS)
            load = np.bincount(before.reshape(-1), minlength=count)
            loads.append(load.max() / load.mean())
            thrown = random.multinomial(sizes.rows, np.full(sizes.partitions, 1 / sizes.partitions))
            held = np.bincount(before.reshape(-1), np.repeat(thrown, REPLICAS), minlength=count)
            entries.append(held.max() / held.mean())
            moves.append(moved(before, after) / (sizes.partitions * REPLICAS / (count + 1)))
            progress(done + 1)
    at_12 = sizes.nodes.index(12)

    def by_nodes(values: Sequence[float]) -> list[Series]:
        return [
            Series(f"{count} nodes", "x", (value,)) for count, value in zip(sizes.nodes, values, strict=True)
        ]

    each = {
        "partitions of the fullest node, of the mean": loads,
        f"entries of the fullest node, of the mean ({sizes.rows:.0e} entries)": entries,
        "moved when one node is added, of what must": moves,
    }
    yield Answer(
        "balance", "12 nodes: partitions of the fullest node, of the mean", 1.06,
        Series("load", "x", (loads[at_12],)), judged=form != "tiny",
        beside=by_nodes(entries),
    )  # fmt: skip
    yield Answer(
        "movement", "12 nodes and one more: replicas moved, of what must", 1.2,
        Series("moved", "x", (moves[at_12],)), judged=form != "tiny",
        beside=by_nodes(moves),
    )  # fmt: skip
    yield Answer(
        "time", "the map of the largest cluster computed in", None, Series("time", "s", (times[-1],))
    )
    if form == "full":
        _plot(sizes.nodes, each)


def _plot(nodes: Sequence[int], each: dict[str, list[float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, values in each.items():
        axes.plot(nodes, values, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("nodes")
    axes.set_ylim(0.5, 1.5)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.legend()
    axes.set_title("Placement: balance and movement, 4,096 partitions, 3 replicas")
    figure.tight_layout()
    for ending in ("svg", "png"):
        figure.savefig(
            Path(__file__).parent / "results" / f"placement.{ending}",
            metadata={"Date": None} if ending == "svg" else None,
        )
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
