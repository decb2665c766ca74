"""`kvmeta` with a wall clock of its own: `python clocked.py FILE serve …`; FILE has the seconds it is ahead.

Only what kvmeta itself reads is moved. Under libfaketime, which moves it for all of the process, a node takes
three times the CPU, and Python's time.sleep fails.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kvmeta.cli.main import run


def _set_by(file: Path) -> None:
    true_ns = time.time_ns
    time.time_ns = lambda: true_ns() + int(file.read_text()) * 1_000_000_000


if __name__ == "__main__":
    _set_by(Path(sys.argv.pop(1)))
    run()
