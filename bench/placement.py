"""How evenly entries lie and how much moves: `python -m bench.placement --quick`, `--full` or `--tiny`.

For clusters of 3 to 1,000 nodes: the map is computed as the nodes would, one node is added, another taken
out again, and 10^11 entries are thrown on the partitions (a multinomial draw). No node runs. Clusters to 100
nodes are placed with 65,536 partitions, too, the most there can be; larger ones are left out of that, for
each takes minutes and gigabytes. The results are plotted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench import report
from bench.table import Answer, Series
from bench.timing import Progress
from kvmeta_server.cluster.placement import Candidate, moved, place

REPLICAS = 3
ENTRIES = 10**11
ZONES = 12


@dataclass(frozen=True)
class Sizes:
    """The clusters of one form, and those that are placed once more with `fine_partitions`."""

    nodes: tuple[int, ...]
    partitions: int
    fine_nodes: tuple[int, ...]
    fine_partitions: int
    rows: int = ENTRIES


FORMS = {
    "tiny": Sizes((3, 12), 256, (12,), 1024),
    "quick": Sizes((3, 5, 12, 30, 100), 4096, (12,), 65_536),
    "full": Sizes((3, 4, 5, 8, 12, 20, 30, 50, 100, 200, 300, 500, 1000), 4096, (12, 30, 100), 65_536),
}


@dataclass
class Curves:
    """What came of clusters of one number of partitions, an entry for each number of nodes."""

    partitions: int
    nodes: list[int] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    entries: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    removed: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    def beside(self) -> list[Series]:
        """Return the movement, to be told beside an answer."""
        return [
            Series(f"{self.partitions:,} partitions, {count} nodes, one {what}", "x", (value,))
            for what, values in (("added", self.added), ("removed", self.removed))
            for count, value in zip(self.nodes, values, strict=True)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form; return the exit status."""
    return report.run("placement", FORMS, _measure, arguments)


def _measure(form: str, sizes: Sizes, _: Path) -> Iterator[Answer]:
    first = len(sizes.nodes)
    with Progress("placing", first + len(sizes.fine_nodes)) as progress:
        coarse = _curves(sizes.nodes, sizes.partitions, sizes.rows, progress)
        fine = _curves(
            sizes.fine_nodes, sizes.fine_partitions, sizes.rows, lambda done: progress(first + done)
        )
    at_12 = sizes.nodes.index(12)
    yield Answer(
        "balance", "12 nodes: partitions of the fullest node, of the mean", 1.06,
        Series("load", "x", (coarse.loads[at_12],)), judged=form != "tiny",
        beside=[
            Series(f"{count} nodes", "x", (value,))
            for count, value in zip(coarse.nodes, coarse.entries, strict=True)
        ],
    )  # fmt: skip
    for key, what, values in (
        ("movement", "one more", coarse.added),
        ("removal", "one less", coarse.removed),
    ):
        yield Answer(
            key, f"12 nodes and {what}: replicas moved, of what must", 1.2,
            Series("moved", "x", (values[at_12],)), judged=form != "tiny",
            beside=[] if key == "removal" else [*coarse.beside(), *fine.beside()],
        )  # fmt: skip
    yield Answer(
        "time", "the map of the largest cluster computed in", None, Series("time", "s", (coarse.times_s[-1],))
    )
    if form == "full":
        _plot(coarse, fine, sizes.rows)


def _curves(counts: Sequence[int], partitions: int, rows: int, progress: Callable[[int], None]) -> Curves:
    """Place clusters of so many nodes, each with one node more, and of these with another one less."""
    random = np.random.default_rng(1)
    out = Curves(partitions)
    for done, count in enumerate(counts):
        nodes = [Candidate(i, f"node-{i}", f"zone-{i % min(count, ZONES)}") for i in range(count + 1)]
        start = time.perf_counter()
        before = place(nodes[:-1], partitions, REPLICAS)
        out.times_s.append(time.perf_counter() - start)
        more, other = (place(some, partitions, REPLICAS) for some in (nodes, nodes[1:]))
        out.nodes.append(count)
        load = np.bincount(before.reshape(-1), minlength=count)
        out.loads.append(load.max() / load.mean())
        thrown = random.multinomial(rows, np.full(partitions, 1 / partitions))
        held = np.bincount(before.reshape(-1), np.repeat(thrown, REPLICAS), minlength=count)
        out.entries.append(held.max() / held.mean())
        must = partitions * REPLICAS / (count + 1)
        out.added.append(moved(before, more) / must)
        out.removed.append(moved(more, other) / must)
        progress(done + 1)
    return out


def _plot(coarse: Curves, fine: Curves, rows: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for curves, line in ((coarse, "-"), (fine, "--")):
        for name, values in (
            ("partitions of the fullest node, of the mean", curves.loads),
            (f"entries of the fullest node, of the mean ({rows:.0e} entries)", curves.entries),
            ("moved when one node is added, of what must", curves.added),
            ("moved when another is removed, of what must", curves.removed),
        ):
            axes.plot(
                curves.nodes, values, line, marker="o", markersize=4, label=f"{curves.partitions:,}: {name}"
            )
        axes.set_prop_cycle(None)  # the same figure has the same colour
    axes.set_xscale("log")
    axes.set_xlabel("nodes")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.axhline(1.2, color="grey", linewidth=0.8, linestyle=":")
    axes.legend(fontsize="x-small")
    axes.set_title("Placement: balance and movement, 4,096 and 65,536 partitions, 3 replicas")
    figure.tight_layout()
    for ending in ("svg", "png"):
        figure.savefig(
            Path(__file__).parent / "results" / f"placement.{ending}",
            metadata={"Date": None} if ending == "svg" else None,
        )
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
