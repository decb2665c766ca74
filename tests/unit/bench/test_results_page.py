"""The results page and the planner's figures are what the results files say."""

from __future__ import annotations

import importlib.util
import json

import pytest

from bench import results_page


def test_the_page_holds_the_measured_figures():
    assert results_page.PAGE.read_text() == results_page.page(results_page.read())


def test_the_planner_counts_with_the_measured_figures():
    figures = results_page.measured(results_page.read())

    assert figures is not None
    assert json.loads(results_page.PLANNED.read_text()) == figures


@pytest.mark.slow  # the first use of matplotlib on a machine starts fc-list
@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib (extra bench)")
def test_the_plots_are_drawn_from_the_same_figures(tmp_path):
    from bench import plots

    files = plots.draw(results_page.read(), tmp_path)

    assert sorted(file.name for file in files) == sorted(
        f"{name}.{kind}" for name in ("lookups", "footprint", "growth") for kind in ("png", "svg")
    )
    for file in files:
        assert (results_page.RESULTS / file.name).exists()
        assert file.stat().st_size > 5_000
