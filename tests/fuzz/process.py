"""A process of a fuzz program: kernels not compiled, its files in a directory of its own, in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
_MEMORY = Path("/dev/shm")


def run(
    module: str, *arguments: str, wait_s: float, **streams: IO[Any] | int
) -> subprocess.CompletedProcess[str]:
    """Run `python -m tests.fuzz.<module>` to its end and return it."""
    where = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="kvmeta-fuzz-", dir=where) as folder:
        return subprocess.run(
            [sys.executable, "-m", f"tests.fuzz.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, "NUMBA_DISABLE_JIT": "1", "TMPDIR": folder},
            text=True,
            timeout=wait_s,
            check=False,
            **streams,
        )
