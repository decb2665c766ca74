"""The judge of histories, on histories written by hand: what may be, and what may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.chaos.history import GARBLED, ROW, Kind, Told, Verdict, check, explain

PUT, DELETE, INSERT, RELOCATE, LOOKUP, FAST = Kind
DONE, UNKNOWN, HELD, ABSENT, CHANGED, TWICE = Told
Operation = tuple[Any, ...]


def op(
    kind: Kind, began: int, ended: int, *, told: Told = DONE, wrote: int = 0, saw: int = 0, version: int = 0
) -> Operation:
    return (kind, told, 7, wrote, saw, version, began, ended)


def judge(*operations: Operation) -> Verdict:
    return check(np.array(list(operations), ROW))


def rules(*operations: Operation) -> list[str]:
    return [violation.rule for violation in judge(*operations).violations]


def test_reading_the_last_value_written_breaks_no_rule() -> None:
    assert not rules(
        op(LOOKUP, 0, 1),
        op(PUT, 2, 4, wrote=1),
        op(LOOKUP, 5, 6, saw=1, version=10),
        op(PUT, 7, 9, wrote=2),
        op(LOOKUP, 10, 11, saw=2, version=20),
        op(DELETE, 12, 13),
        op(LOOKUP, 14, 15),
        op(FAST, 16, 17),
    )


def test_a_lookup_during_a_write_may_see_the_old_or_new_value() -> None:
    writes = op(PUT, 0, 1, wrote=1), op(PUT, 10, 20, wrote=2)
    assert not rules(*writes, op(LOOKUP, 11, 12, saw=1, version=5))
    assert not rules(*writes, op(LOOKUP, 11, 12, saw=2, version=9))
    assert not rules(op(PUT, 0, 1, wrote=1), op(DELETE, 10, 20), op(LOOKUP, 11, 12))


def test_the_check_reports_a_lost_acknowledged_put() -> None:
    assert rules(op(PUT, 0, 1, wrote=1), op(PUT, 2, 3, wrote=2), op(LOOKUP, 4, 5, saw=1, version=5)) == [
        "lost"
    ]


def test_the_check_reports_a_false_miss() -> None:
    put = op(PUT, 0, 1, wrote=1)
    assert rules(put, op(LOOKUP, 2, 3)) == ["lost"]
    assert rules(put, op(FAST, 2, 3)) == ["lost"]
    assert rules(put, op(INSERT, 2, 3, wrote=2)) == ["lost"]
    assert rules(put, op(RELOCATE, 2, 3, told=ABSENT, wrote=2, saw=1, version=5)) == ["lost"]


def test_the_check_reports_a_deleted_entry_that_comes_back() -> None:
    assert rules(op(PUT, 0, 1, wrote=1), op(DELETE, 2, 3), op(LOOKUP, 4, 5, saw=1, version=5)) == ["lost"]


def test_a_write_of_unknown_outcome_may_take_effect_late_or_never() -> None:
    unknown, put = op(PUT, 0, 1, told=UNKNOWN, wrote=1), op(PUT, 2, 3, wrote=2)
    assert not rules(unknown, put, op(LOOKUP, 90, 91, saw=1, version=9))
    assert not rules(unknown, put, op(LOOKUP, 90, 91, saw=2, version=5))
    assert not rules(op(DELETE, 0, 1, told=UNKNOWN), put, op(LOOKUP, 90, 91))


def test_a_write_sent_twice_is_acknowledged_and_may_take_effect_again() -> None:
    twice, put = op(PUT, 0, 1, told=TWICE, wrote=1), op(PUT, 2, 3, wrote=2)
    assert rules(twice, op(LOOKUP, 4, 5)) == ["lost"]
    assert not rules(twice, put, op(LOOKUP, 4, 5, saw=1, version=9))


def test_a_value_read_by_a_quorum_stays_despite_its_unknown_outcome() -> None:
    unknown = op(PUT, 4, 5, told=UNKNOWN, wrote=2)
    before = op(DELETE, 0, 1)
    assert rules(before, unknown, op(LOOKUP, 6, 7, saw=2, version=9), op(LOOKUP, 8, 9)) == ["lost"]
    assert not rules(before, unknown, op(FAST, 6, 7, saw=2, version=9), op(LOOKUP, 8, 9))


def test_the_check_reports_a_value_that_nobody_wrote() -> None:
    assert rules(op(LOOKUP, 0, 1, saw=3, version=5)) == ["invented"]
    assert rules(op(PUT, 5, 6, wrote=3), op(LOOKUP, 0, 1, saw=3, version=5)) == ["invented"]
    assert rules(op(PUT, 0, 1, wrote=3), op(FAST, 2, 3, saw=GARBLED, version=5)) == ["invented"]
    assert rules(op(PUT, 0, 1, wrote=1), op(INSERT, 2, 3, told=HELD, wrote=2, saw=2, version=5)) == [
        "invented"
    ]


def test_a_refused_relocate_has_no_effect() -> None:
    put, refused = op(PUT, 0, 1, wrote=1), op(RELOCATE, 2, 3, told=CHANGED, wrote=2, saw=1, version=5)
    assert not rules(put, refused)
    assert rules(put, refused, op(LOOKUP, 4, 5, saw=2, version=6)) == ["invented"]


def test_a_fast_hit_may_be_old() -> None:
    assert not rules(op(PUT, 0, 1, wrote=1), op(PUT, 2, 3, wrote=2), op(FAST, 4, 5, saw=1, version=5))
    assert not rules(op(PUT, 0, 1, wrote=1), op(DELETE, 2, 3), op(FAST, 4, 5, saw=1, version=5))


def test_versions_never_go_back() -> None:
    writes = op(PUT, 0, 9, wrote=1), op(PUT, 0, 9, wrote=2)
    assert rules(*writes, op(LOOKUP, 1, 2, saw=1, version=8), op(LOOKUP, 3, 4, saw=2, version=7)) == [
        "backwards"
    ]
    assert not rules(*writes, op(LOOKUP, 1, 4, saw=1, version=8), op(LOOKUP, 3, 6, saw=2, version=7))
    assert rules(op(INSERT, 0, 1, wrote=1, version=8), op(LOOKUP, 2, 3, saw=1, version=7)) == ["backwards"]


def test_a_relocate_takes_effect_from_the_version_seen() -> None:
    put, seen = op(PUT, 0, 1, wrote=1), op(LOOKUP, 2, 3, saw=1, version=8)
    moved = op(RELOCATE, 4, 5, wrote=2, saw=1, version=8)
    assert not rules(put, seen, moved, op(LOOKUP, 6, 7, saw=2, version=9))
    assert rules(put, seen, moved, op(LOOKUP, 6, 7, saw=1, version=8)) == ["lost", "backwards"]
    late = op(RELOCATE, 20, 21, wrote=2, saw=1, version=8)
    assert "lost" in rules(put, seen, op(PUT, 10, 11, wrote=3), late)


def test_one_version_has_one_value() -> None:
    writes = op(PUT, 0, 9, wrote=1), op(PUT, 0, 9, wrote=2)
    assert rules(*writes, op(FAST, 1, 2, saw=1, version=8), op(LOOKUP, 1, 2, saw=2, version=8)) == [
        "ambiguous"
    ]


def test_two_concurrent_successful_inserts_are_counted_but_break_no_rule() -> None:
    verdict = judge(op(INSERT, 0, 5, wrote=1, version=8), op(INSERT, 3, 9, wrote=2, version=9))
    assert not verdict.violations
    assert [(each.began, each.ended) for each in verdict.twins] == [(0, 9)]
    apart = judge(op(INSERT, 0, 5, wrote=1), op(DELETE, 4, 6), op(INSERT, 5, 9, wrote=2))
    assert not apart.twins


def test_two_relocates_of_one_version_are_counted_but_break_no_rule() -> None:
    verdict = judge(
        op(PUT, 0, 1, wrote=1),
        op(RELOCATE, 2, 6, wrote=2, saw=1, version=8),
        op(RELOCATE, 3, 7, wrote=3, saw=1, version=8),
        op(LOOKUP, 4, 8, saw=2, version=9),
        op(LOOKUP, 4, 9, saw=3, version=9),
    )
    assert not verdict.violations
    assert [(each.began, each.ended) for each in verdict.twins] == [(2, 7)]


def test_operations_without_an_answer_are_not_judged() -> None:
    assert not rules(op(PUT, 0, 1, wrote=1), op(LOOKUP, 2, 3, told=UNKNOWN), op(FAST, 2, 3, told=UNKNOWN))
    assert not rules(op(PUT, 0, 1, wrote=1), op(INSERT, 2, 3, told=UNKNOWN, wrote=2))


def test_every_id_is_judged_separately() -> None:
    rows = np.array([op(PUT, 0, 1, wrote=1), op(LOOKUP, 2, 3)], ROW)
    rows["id"] = [1, 2]
    assert not check(rows).violations
    assert not check(rows[:0]).violations


@pytest.mark.parametrize("seed", range(20))
def test_the_check_accepts_every_history_of_a_correct_register(seed: int) -> None:
    """Operations that take effect at a moment within their time, half of the unknown ones never."""
    random = np.random.default_rng(seed)
    operations = []
    moments = np.cumsum(random.integers(1, 20, 300))
    held, version = 0, 0
    for attempt, moment in enumerate(moments.tolist(), 1):
        began, ended = moment - int(random.integers(1, 60)), moment + int(random.integers(1, 60))
        kind = Kind(random.choice([PUT, DELETE, INSERT, LOOKUP, LOOKUP]))
        unknown = random.random() < 0.1
        if kind == LOOKUP:
            operations.append(op(LOOKUP, began, ended, saw=held, version=version if held else 0))
            continue
        told, saw, seen = (UNKNOWN if unknown else DONE), 0, 0
        if kind == INSERT and held:
            told, saw, seen = HELD, held, version
        elif not unknown or random.random() < 0.5:
            held, version = (0 if kind == DELETE else attempt), version + 10
            seen = version if kind == INSERT and told == DONE else 0
        wrote = 0 if kind == DELETE else attempt
        operations.append(op(kind, began, ended, told=told, wrote=wrote, saw=saw, version=seen))
    verdict = judge(*operations)
    assert not verdict.violations, "\n".join(explain(np.array(operations, ROW), 7))
