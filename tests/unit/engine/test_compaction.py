from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmeta.engine.compaction import Choice, RunShape, choose, everything

LIMITS = {"bottom_free": True, "upper_runs_max": 32, "memtable_rows": 100, "fan_out": 4, "bottom_ratio": 8}


def runs(*rows: int, bottom: int = 0) -> list[RunShape]:
    shapes = [RunShape(i + 1, n, False) for i, n in enumerate(rows)]
    return [*shapes, RunShape(99, bottom, True)] if bottom else shapes


def test_few_runs_are_left_alone() -> None:
    assert choose(runs(100, 100, 100), **LIMITS) is None
    assert choose([], **LIMITS) is None


def test_the_first_full_tier_becomes_the_bottom_run() -> None:
    assert choose(runs(100, 100, 90, 100), **LIMITS) == Choice((1, 2, 3, 4), bottom=True)


def test_upper_runs_are_merged_among_themselves_while_the_bottom_is_large() -> None:
    assert choose(runs(100, 100, 100, 100, bottom=100_000), **LIMITS) == Choice((1, 2, 3, 4), bottom=False)


def test_upper_runs_large_enough_are_merged_into_the_bottom_run() -> None:
    choice = choose(runs(400, 400, 100, 100, bottom=8000), **LIMITS)
    assert choice == Choice((1, 2, 3, 4, 99), bottom=True)


def test_runs_of_different_tiers_are_not_merged_with_each_other() -> None:
    assert choose(runs(100, 100, 100, 1600, 400, bottom=10**6), **LIMITS) is None


def test_a_full_compaction_skips_a_lone_bottom_run_unless_rewriting() -> None:
    assert everything(runs(bottom=5)) is None
    assert everything(runs(bottom=5), rewrite=True) == Choice((99,), bottom=True)
    assert everything(runs(7)) == Choice((1,), bottom=True)
    assert everything([]) is None


def test_upper_runs_merge_among_themselves_during_a_bottom_merge() -> None:
    busy = {**LIMITS, "bottom_free": False}
    assert choose(runs(100, 100, 100), **busy) is None
    assert choose(runs(100, 100, 90, 100), **busy) == Choice((1, 2, 3, 4), bottom=False)


def test_large_loaded_runs_go_to_the_bottom_though_they_are_few() -> None:
    assert choose(runs(3000, 2800, bottom=100), **LIMITS) == Choice((1, 2, 99), bottom=True)
    assert choose(runs(3000, 2800), **LIMITS) == Choice((1, 2), bottom=True)


def test_too_many_runs_are_merged_though_no_tier_is_full() -> None:
    few = {**LIMITS, "upper_runs_max": 2}
    assert choose(runs(100, 1600, 400, bottom=10**6), **few) == Choice((1, 3), bottom=False)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=400))
def test_the_number_of_runs_stays_small_and_every_row_is_kept(flushes: list[int]) -> None:
    held: list[RunShape] = []
    number = 0
    for rows in flushes:
        number += 1
        held.append(RunShape(number, rows, False))
        while (choice := choose(held, **LIMITS)) is not None:
            number += 1
            merged = sum(run.rows for run in held if run.number in choice.inputs)
            held = [run for run in held if run.number not in choice.inputs]
            held.append(RunShape(number, merged, choice.bottom))
    assert sum(run.rows for run in held) == sum(flushes)
    assert sum(run.bottom for run in held) <= 1
    assert len(held) <= 3 * 5 + 1
