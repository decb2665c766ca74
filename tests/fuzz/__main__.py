"""Fuzz every target with atheris, each for its share of the time: `make fuzz MINUTES=60`.

What is found, and the corpus that grows, stay in build/fuzz/TARGET; the next run goes on from there. An input
in TARGET/findings, once its fault is fixed, belongs into tests/fuzz/findings/TARGET: the suite replays it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.fuzz.process import ROOT, run
from tests.fuzz.targets import TARGETS

_DATA = ROOT / "build" / "fuzz"
_START_S = 120  # to import, to instrument, to read a large corpus
_ARTEFACTS = ("crash-*", "timeout-*", "oom-*")


def fuzzed(name: str, seconds: int, data: Path) -> dict[str, Any]:
    """Fuzz one target and return what came of it."""
    folder = data / name
    folder.mkdir(parents=True, exist_ok=True)
    wait_s, status = seconds + _START_S, None
    with open(folder / "log", "w") as log, suppress(subprocess.TimeoutExpired):
        status = run(
            "driver", name, str(seconds), str(folder), wait_s=wait_s, stdout=log, stderr=log
        ).returncode
    told = re.search(r"stat::number_of_executed_units:\s*(\d+)", (folder / "log").read_text(errors="replace"))
    findings = [file.stem for file in sorted((folder / "findings").glob("*.txt"))]
    findings += [file.name for pattern in _ARTEFACTS for file in sorted(folder.glob(pattern))]
    if status is None:
        findings.append(f"not ended after {wait_s} s: see {folder / 'log'}")
    elif status and not findings:
        findings.append(f"ended with status {status}: see {folder / 'log'}")
    return {"seconds": seconds, "executions": int(told[1]) if told else 0, "findings": findings}


def main() -> int:
    """Fuzz, print a table, and return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="for all targets together")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only these")
    parser.add_argument("--data", type=Path, default=_DATA, help="where corpus and findings are kept")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    names = arguments.target or TARGETS
    seconds = max(1, round(arguments.minutes * 60 / len(names)))
    results: dict[str, Any] = {}
    for number, name in enumerate(names, start=1):
        print(f"{name}: {seconds} s, {number} of {len(names)}", file=sys.stderr, flush=True)
        results[name] = fuzzed(name, seconds, arguments.data.resolve())
    print(f"{'target':<14}{'executions':>12}{'findings':>10}")
    for name, result in results.items():
        print(f"{name:<14}{result['executions']:>12,}{len(result['findings']):>10}")
        for finding in result["findings"]:
            print(f"    {finding}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return any(result["findings"] for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
