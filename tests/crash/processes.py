"""Processes of a test: forks of this one, and fresh ones from a fork server that never opened a store.

A process that opened a store must not fork a writer (RocksDB's threads do not survive), so writers come from
`fresh`; `in_a_fork` is for what forks may do.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from tests.patience import HANG_S


def fresh(work: Callable[..., None], *args: Any) -> BaseProcess:
    """Start `work(*args)`, a function of a module, in a process that never opened a store."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.warm"])
    process = context.Process(target=work, args=args, daemon=True)
    process.start()
    return process


def ends_well(process: BaseProcess) -> None:
    """Assert that a process ends by itself, with status 0."""
    process.join(HANG_S)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail("the process hangs")
    assert process.exitcode == 0


def in_a_fork(work: Callable[[], object]) -> int:
    """Fork; run `work` in the child, which ends with status 0, or 1 and a traceback; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    faulthandler.dump_traceback_later(HANG_S / 2, file=sys.__stderr__)  # where it hangs
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - a forked test must not return into pytest
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def fork_ends_well(pid: int) -> None:
    """Assert that a fork ends by itself, with status 0."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the fork hangs")
