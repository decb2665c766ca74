"""`kvmeta` with a wall clock of its own, and a planted fault where one is named: what a node's machine runs.

    python -m tests.chaos.node_program FILE PLANT serve …

FILE has the seconds the clock is ahead; beside it, with the suffix `.seen`, is what kvmeta saw of that last.
PLANT is one of tests/simulation/mutants.py, or "".

Only what kvmeta itself reads is moved. Under libfaketime, which moves it for all of the process, a node takes
three times the CPU, and Python's time.sleep fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kvmeta.cli.main import run


def _set_by(file: Path) -> None:
    true_ns, seen, last = time.time_ns, file.with_suffix(".seen"), ""

    def time_ns() -> int:
        nonlocal last
        ahead_s = file.read_text()
        if ahead_s != last:
            last = ahead_s
            seen.write_text(ahead_s)
        return true_ns() + int(ahead_s) * 1_000_000_000

    time.time_ns = time_ns


def _plant(name: str) -> None:
    from tests.simulation.mutants import MUTANTS  # the simulator, which a node has no need of

    MUTANTS[name].plant(setattr)


if __name__ == "__main__":
    _set_by(Path(sys.argv.pop(1)))
    if planted := sys.argv.pop(1):
        _plant(planted)
    run()
