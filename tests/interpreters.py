"""Python programs of tests, each in a session of its own: a hanging one tells where and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.patience import HANG_S

ROOT = Path(__file__).parents[1]


def ends_well(command: Sequence[str | Path], wait_s: float, **environment: str) -> str:
    """Run a Python program in the repository; assert that it and all it started end well; return its output.

    Variables of gRPC are not inherited: they decide what a fork does.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    own |= {"PYTHONFAULTHANDLER": "1"} | environment
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=own, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(wait_s)
            hangs = ""
        except subprocess.TimeoutExpired:
            hangs = f"hangs after {wait_s:g} s"
            os.killpg(process.pid, signal.SIGABRT)  # each of its processes prints its stacks
            status = process.wait(HANG_S)
        if not hangs and not _is_empty(process.pid):
            hangs = "ended and left processes behind"
        if hangs:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGABRT)
                time.sleep(1)
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        told = output.read()
    if hangs or status:
        pytest.fail(f"{command[0]} … {hangs or f'ended with status {status}'}:\n{told}")
    return told


def _is_empty(group: int) -> bool:
    """Return whether all processes of a group end: what multiprocessing leaves does so by itself."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
