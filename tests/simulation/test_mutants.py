"""Every planted fault is noticed: by the seed that is known for it."""

from __future__ import annotations

import pytest

from kvmeta_server.simulator.simulation import simulate
from tests.simulation.mutants import MUTANTS, planted


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.seed])
def test_a_planted_fault_is_noticed(name: str) -> None:
    mutant = MUTANTS[name]
    with planted(mutant):
        violation = simulate(mutant.seed, mutant.mix).violation
    assert violation
    assert "TypeError" not in violation, "the plant does not fit the code: it breaks the program, not a rule"
    assert "AttributeError" not in violation
