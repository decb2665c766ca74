"""Settings of every test run: which tests are slow, and that kernels are compiled once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from kvmeta import compiling
from tests.warming import warm_apart

# The first call of a kernel compiles or loads it, and a busy machine makes every example slow: neither says
# anything of the code.
settings.register_profile("kvmeta", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvmeta")

QUICK_ROOMS = ("unit", "contract")
SLOW_S = 1.0
_STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")
_running: list[pytest.Item] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say when kernels are compiled; where processes share the tests, compile them before they start."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    if getattr(config.option, "numprocesses", None):
        warm_apart()
    else:
        compiling.tell_by(config.get_terminal_writer().line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow rooms; where processes share the files of tests, those with slow ones come first.

    Small ones then fill the gaps at the end.
    """
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] not in QUICK_ROOMS:
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Know which test runs."""
    _running[:] = [item]
    try:
        return (yield)
    finally:
        _running.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note the processor time of a test, of which a busy machine does not take more."""
    before = time.process_time()
    try:
        return (yield)
    finally:
        item.user_properties.append(("cpu_s", time.process_time() - before))


def _refuse_processes(event: str, _: tuple[Any, ...]) -> None:
    """Keep the mark honest: fail a test that starts a process and is not marked slow."""
    if event in _STARTS and _running and _running[0].get_closest_marker("slow") is None:
        pytest.fail(f"{_running[0].nodeid} starts a process ({event}): mark it slow")


sys.addaudithook(_refuse_processes)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the tests that take over a second and are not marked slow."""
    for report in terminalreporter.stats.get("passed", []):
        spent_s = dict(report.user_properties).get("cpu_s", 0.0)
        if spent_s > SLOW_S and "slow" not in report.keywords:
            terminalreporter.write_line(f"takes {spent_s:.1f} s here and is not marked slow: {report.nodeid}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Where every part is installed (CI sets KVMETA_REQUIRE_ALL), a test skipped for a missing one fails."""
    report = yield
    if report.skipped and os.environ.get("KVMETA_REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report
