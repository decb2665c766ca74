"""Settings of every test run."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# The first call of a kernel compiles or loads it, so no example has a deadline.
settings.register_profile("kvmeta", deadline=None)
settings.load_profile("kvmeta")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Where every part is installed (CI sets KVMETA_REQUIRE_ALL), a test skipped for a missing one fails."""
    report = yield
    if report.skipped and os.environ.get("KVMETA_REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report
