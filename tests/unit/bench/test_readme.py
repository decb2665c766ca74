"""The measured blocks of README.md and docs/operating.md are what the results files say."""

from __future__ import annotations

import re

import pytest

from bench import sections
from bench.readme import BLOCKS, README, Block


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_page_holds_the_measured_figures(block: Block) -> None:
    page = block.page.read_text()
    assert block.pattern.search(page), f"{block.page.name} has no block {block.name}"
    assert block.updated(page, sections.read()) == page


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_nothing_is_claimed_before_the_benchmark_was_run(block: Block) -> None:
    assert block.text({}) == ""


def test_the_readme_tells_three_figures_each_with_a_link_to_the_results() -> None:
    (figures,) = (block for block in BLOCKS if block.page == README)
    items = figures.text(sections.read()).split("\n- ")
    assert len(items) == 3
    for item in items:
        assert re.search(r"\*\*[^*]*\d[^*]*\*\*", item)
        assert "](bench/RESULTS.md#" in item
