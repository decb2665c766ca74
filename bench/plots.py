"""The plots of bench/RESULTS.md, as SVG and PNG; the same figures give the same SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from bench.sections import Section, series, short, sizes, systems
from bench.table import number

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "kvmeta"
mpl.rcParams["font.size"] = 9

from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first
from matplotlib.figure import Figure  # noqa: E402

_OURS, _PEER, _LIMIT = "#0b6e4f", "#8a8f98", "#d0d4da"
_FORMATS = ("svg", "png")


def draw(sections: dict[str, Section], directory: Path) -> list[Path]:
    """Draw every plot there are figures for and return the files."""
    files: list[Path] = []
    if "compare" in sections:
        told = systems(sections["compare"])
        files += _save(_lookups(told), directory / "lookups")
        files += _save(_footprint(told), directory / "footprint")
    if "scale" in sections:
        files += _save(_growth(sizes(sections["scale"])), directory / "growth")
    return files


def _lookups(told: list[Section]) -> Figure:
    """Draw lookups a second, log scale: factors are what matters."""
    bars = [
        (short(answer), figure["median"], answer["key"])
        for answer in told
        if (figure := series(answer, "batches of 16,384")) is not None
    ]
    bars.sort(key=lambda bar: bar[1])
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(bars) + 1))
    axes.barh([bar[0] for bar in bars], [bar[1] for bar in bars], color=[_color(bar[2]) for bar in bars])
    for place, (_, rate, _) in enumerate(bars):
        axes.text(rate * 1.05, place, number(rate), va="center")
    axes.set_xscale("log")
    axes.set_xlabel("lookups, M IDs/s, batches of 16,384, best way to ask")
    return figure


def _footprint(told: list[Section]) -> Figure:
    """Draw bytes an entry in memory and on disk."""
    rows = [
        (short(answer), *(_median(answer, name) for name in ("memory", "disk")), answer["key"])
        for answer in told
        if series(answer, "memory") is not None
    ]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.32 * len(rows) + 1), sharey=True)
    for which, (panel, name) in enumerate(
        zip(axes, ("memory besides page cache", "disk"), strict=True), start=1
    ):
        values = [row[which] for row in rows]
        panel.barh([row[0] for row in rows], values, color=[_color(row[3]) for row in rows])
        for place, value in enumerate(values):
            panel.text(value, place, f" {number(value)}", va="center")
        panel.set_xlabel(f"{name}, B/entry")
    return figure


def _growth(told: list[tuple[int, Section]]) -> Figure:
    """Draw the cost of a lookup against entries, both log."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, label, scale in (
        ("warm, in process", "warm, in process", 1.0),
        ("warm, over gRPC", "warm, over gRPC", 1.0),
        ("cold, batches of 4,096", "cold (device reads)", 1e6),
        ("mixed", "larger than memory, mixed", 1e6),
    ):
        points = [(rows, each) for rows, answer in told if (each := series(answer, name)) is not None]
        if points:
            rates = scale != 1.0
            costs = [scale / each["median"] if rates else each["median"] for _, each in points]
            axes.plot([rows for rows, _ in points], costs, "o-", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("entries")
    axes.set_ylabel("ns an ID")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    return figure


def _median(answer: Section, name: str) -> float:
    figure = series(answer, name)
    return 0.0 if figure is None else float(figure["median"])


def _color(key: str) -> str:
    if key.startswith("system-kvmeta"):
        return _OURS
    return _LIMIT if key == "system-echo" else _PEER


def _save(figure: Figure, path: Path) -> list[Path]:
    figure.tight_layout()
    files = [path.with_suffix(f".{kind}") for kind in _FORMATS]
    for file in files:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=120)
    plt.close(figure)
    return files
