"""A benchmark's command line and its report: what is measured, printed and written is the same for all.

    python -m bench.NAME --FORM [--data DIR] [--results FILE]

Stores are built once below --data. The table and every missed target are printed, the raw rounds go to the
results file. A missed target is also the exit status of the full form. The tiny form judges nothing: it shows
that the benchmark still runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import table
from bench.table import Answer

_HERE = Path(__file__).resolve().parent


def run(
    name: str,
    forms: Mapping[str, Any],
    measure: Callable[[str, Any, Path], Iterable[Answer]],
    arguments: Sequence[str] | None,
    *,
    sharing: str = "",
    left_out: str = "",
) -> int:
    """Run one form of benchmark `name` and return the exit status.

    `forms`: sizes (a dataclass with `rows`) by form; `measure` takes form, sizes and data directory;
    `sharing`: who shares the cores; `left_out`: what is not measured here, and why.
    """
    given = _parser(name, forms).parse_args(arguments)
    form, sizes = given.form, forms[given.form]
    start = time.monotonic()
    answers = list(measure(form, sizes, given.data))
    if form == "tiny":
        answers = [replace(answer, judged=False) for answer in answers]
    print(f"kvmeta {name}, {form}: {_machine_line()}{sharing}\n")
    print(table.table(answers))
    table.write(given.results, form, asdict(sizes), answers)
    missed = table.misses(answers)
    print()
    for answer in missed:
        print(f"short: {answer.question}: {answer.measured.text()}, target {answer.target_text}")
    if left_out:
        print(f"left out: {left_out}")
    judged = sum(answer.judged and answer.target is not None for answer in answers)
    spent = time.monotonic() - start
    print(f"{judged - len(missed)} of {judged} targets met; {spent:.0f} s; rounds in {given.results}")
    return 1 if (missed or left_out) and form == "full" else 0


def _machine_line() -> str:
    machine = table.machine()
    memory = machine["memory_bytes"] / (1 << 30)
    return f"{machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, Python {machine['python']}"


def _parser(name: str, forms: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=f"Measure the {name}.")
    form = parser.add_mutually_exclusive_group(required=True)
    for each, sizes in forms.items():
        form.add_argument(
            f"--{each}", dest="form", action="store_const", const=each, help=f"{sizes.rows:,} rows"
        )
    parser.add_argument("--data", type=Path, default=_HERE / "data", help="where stores are built and kept")
    results = _HERE / "results" / f"{name}.json"
    parser.add_argument("--results", type=Path, default=results, help="the JSON file to update")
    return parser
