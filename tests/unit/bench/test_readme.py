"""The README's measured tables are what the results files say."""

from __future__ import annotations

import pytest

from bench.readme import BLOCKS, README, Block, read, updated


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_readme_holds_the_measured_figures(block: Block) -> None:
    results = read(block)
    if results is None:
        pytest.skip(f"the full form of the {block.name}'s benchmark has not been run here")
    readme = README.read_text()
    assert block.pattern.search(readme), "the README has no such block"
    assert updated(readme, block, results) == readme
