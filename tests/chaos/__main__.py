"""Rounds of chaos for so many minutes: `python -m tests.chaos --minutes 30 [--seed N] [--json FILE]`.

Each round has a cluster and a seed of its own. With --json rounds that are in the file already are not run
again: an interrupted run goes on. Logs and history of a round that failed stay below --work.

With --plant NAME, of tests/simulation/mutants.py, the nodes have a fault in their code, and something must be
wrong: rounds are run until it is.
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
from tests.simulation.mutants import MUTANTS

ROUND_S = 300.0
"""Of faults in a round; longer where a kind has not been there by then."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds; return 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults on a real cluster.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, in all (%(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (%(default)s)")
    parser.add_argument("--work", type=Path, help="where the nodes keep their data")
    parser.add_argument("--json", type=Path, help="the file for the result; rounds in it are not run again")
    parser.add_argument(
        "--plant", choices=sorted(MUTANTS), default="", metavar="NAME", help="a fault in nodes"
    )
    given = parser.parse_args(arguments)
    work = given.work or Path(tempfile.mkdtemp(prefix="kvmeta-chaos-"))
    rounds = json.loads(given.json.read_text()) if given.json and given.json.exists() else []
    while sum(each["seconds"] for each in rounds) < 60 * given.minutes:
        seed = given.seed + len(rounds)
        print(f"round {len(rounds) + 1}, seed {seed}", file=sys.stderr, flush=True)
        directory = work / f"seed-{seed}"
        shutil.rmtree(directory, ignore_errors=True)
        result = Round(seed, ROUND_S, directory, _say, plant=given.plant).run()
        rounds.append(asdict(result))
        if given.json:
            given.json.write_text(json.dumps(rounds, indent=1) + "\n")
        if not result.wrong:
            shutil.rmtree(directory)
        elif given.plant:
            break
    wrong = _conclude(rounds)
    return int(not wrong if given.plant else wrong)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _conclude(rounds: list[dict[str, Any]]) -> bool:
    """Print what came of all rounds; return whether something was wrong."""
    operations = {
        kind.name.lower(): sum((Counter(each["operations"][kind.name.lower()]) for each in rounds), Counter())
        for kind in Kind
    }
    print(f"{'operations on IDs':20}" + "".join(f"{told.name.lower():>12}" for told in Told))
    for name, counts in operations.items():
        print(f"{name:20}" + "".join(f"{counts[told.name.lower()]:>12,}" for told in Told))
    faults, felt = (sum((Counter(each[name]) for each in rounds), Counter()) for name in ("faults", "felt"))
    print(f"\n{'faults':20}{'in all':>12}{'felt':>12}")
    print("".join(f"{name:20}{count:>12,}{felt[name]:>12,}\n" for name, count in sorted(faults.items())))
    wrong = [text for each in rounds for text in each["wrong"]]
    for text in wrong:
        print(text)
    seconds = sum(each["seconds"] for each in rounds)
    twins = sum(each["twins"] for each in rounds)
    print(f"{len(rounds)} rounds, {seconds / 60:.1f} minutes, {sum(each['ids'] for each in rounds):,} IDs")
    too_old = sum(each["too_old"] for each in rounds)
    print(f"{twins} twins amid faults; {too_old} fast reads that no quorum read may answer")
    print(f"{len(wrong)} things wrong")
    return bool(wrong)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nodes and namespaces go
    sys.exit(main())
