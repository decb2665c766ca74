"""The sections of the files in bench/results, and how a figure is found in one.

    section = {"date", "machine", "sizes", "answers": [answer, …]}    one form of one benchmark
    answer  = {"key", "question", "target", "verdict", "measured": series, "beside": [series, …]}
    series  = {"name", "unit", "median", "min", "max", "rounds": […]}

`bench/table.py` writes them; pages and plots are made from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.table import number

RESULTS = Path(__file__).resolve().parent / "results"
BENCHMARKS = ("compare", "scale", "engine", "service", "cluster", "placement")

Section = dict[str, Any]


def read(directory: Path = RESULTS) -> dict[str, Section]:
    """Return the full form of each benchmark that has been run in full."""
    sections = {}
    for name in BENCHMARKS:
        path = directory / f"{name}.json"
        forms = json.loads(path.read_text()) if path.exists() else {}
        if "full" in forms:
            sections[name] = forms["full"]
    return sections


def answers(section: Section) -> dict[str, Section]:
    """Return the answers by their keys."""
    return {answer["key"]: answer for answer in section["answers"]}


def systems(section: Section) -> list[Section]:
    """Return the answers that tell everything about one system."""
    return [answer for answer in section["answers"] if answer["key"].startswith("system-")]


def sizes(section: Section) -> list[tuple[int, Section]]:
    """Return the answers that tell everything about one size, and the size."""
    told = [answer for answer in section["answers"] if answer["key"].startswith("rows-")]
    return [(int(answer["key"].removeprefix("rows-")), answer) for answer in told]


def series(answer: Section, name: str, unit: str | None = None) -> Section | None:
    """Return the series of that name; a way to ask in brackets may follow it."""
    for each in (answer["measured"], *answer["beside"]):
        if (each["name"] == name or each["name"].startswith(f"{name} (")) and unit in (None, each["unit"]):
            return dict(each)
    return None


def median(answer: Section, name: str, unit: str | None = None) -> str:
    """Return the median of a series as it is printed, "" where there is no such series."""
    figure = series(answer, name, unit)
    return "" if figure is None else number(figure["median"])


def short(answer: Section) -> str:
    """Return a system's name without its versions."""
    return str(answer["question"]).partition(" (")[0]
