"""The README's measured table is what the results file says."""

from __future__ import annotations

import json

import pytest

from bench.readme import README, RESULTS, updated


def test_the_readme_holds_the_measured_figures() -> None:
    if not RESULTS.exists():
        pytest.skip("the full benchmark has not been run here")
    readme = README.read_text()
    assert updated(readme, json.loads(RESULTS.read_text())) == readme
