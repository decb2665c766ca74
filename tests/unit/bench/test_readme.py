"""The README's measured tables are what the results files say."""

from __future__ import annotations

import pytest

from bench.readme import BLOCKS, README, Block, read, updated


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_readme_holds_the_measured_figures(block: Block) -> None:
    results = read(block)
    readme = README.read_text()
    held = block.pattern.search(readme)
    assert held, "the README has no such block"
    if results is None:  # the full form has not been run yet: nothing may be claimed
        assert "|---|" not in held[0]
        return
    assert updated(readme, block, results) == readme
