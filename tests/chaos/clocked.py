"""`kvmeta` with a wall clock of its own: `python clocked.py FILE serve …`; FILE has the seconds it is ahead.

Only what kvmeta itself reads is moved. libfaketime would move it for gRPC's threads, too, and a node whose
clock it had stepped did not answer any more; Python's time.sleep fails under it.
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
