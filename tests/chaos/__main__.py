"""Rounds of chaos for so many minutes: `python -m tests.chaos --minutes 30 [--seed N] [--json FILE]`.

Each round has a cluster and a seed of its own. With --json rounds that are in the file already are not run
again: an interrupted run goes on. Logs and history of a round that failed stay below --work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.history import Kind, Told
from tests.chaos.rounds import Round

ROUND_S = 300.0
"""Of faults in a round; longer where a kind has not been there by then."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds; return 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults on a real cluster.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, in all (%(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (%(default)s)")
    parser.add_argument("--work", type=Path, help="where the nodes keep their data")
    parser.add_argument("--json", type=Path, help="the file for the result; rounds in it are not run again")
    given = parser.parse_args(arguments)
    work = given.work or Path(tempfile.mkdtemp(prefix="kvmeta-chaos-"))
    rounds = json.loads(given.json.read_text()) if given.json and given.json.exists() else []
    while sum(each["seconds"] for each in rounds) < 60 * given.minutes:
        seed = given.seed + len(rounds)
        print(f"round {len(rounds) + 1}, seed {seed}", file=sys.stderr, flush=True)
        directory = work / f"seed-{seed}"
        shutil.rmtree(directory, ignore_errors=True)
        result = Round(seed, ROUND_S, directory, _say).run()
        rounds.append(asdict(result))
        if given.json:
            given.json.write_text(json.dumps(rounds, indent=1) + "\n")
        if not result.wrong:
            shutil.rmtree(directory)
    return _conclude(rounds)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _conclude(rounds: list[dict[str, Any]]) -> int:
    operations = {
        kind.name.lower(): sum((Counter(each["operations"][kind.name.lower()]) for each in rounds), Counter())
        for kind in Kind
    }
    print(f"{'operations on IDs':20}" + "".join(f"{told.name.lower():>12}" for told in Told))
    for name, counts in operations.items():
        print(f"{name:20}" + "".join(f"{counts[told.name.lower()]:>12,}" for told in Told))
    faults = sum((Counter(each["faults"]) for each in rounds), Counter())
    print("\n" + "".join(f"{name:20}{count:>12,}\n" for name, count in sorted(faults.items())))
    wrong = [text for each in rounds for text in each["wrong"]]
    for text in wrong:
        print(text)
    seconds = sum(each["seconds"] for each in rounds)
    twins = sum(each["twins"] for each in rounds)
    print(f"{len(rounds)} rounds, {seconds / 60:.1f} minutes, {sum(each['ids'] for each in rounds):,} IDs")
    print(f"{twins} twins amid faults; {len(wrong)} things wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nodes and namespaces go
    sys.exit(main())
