"""The distinct IDs of a call, against a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvmeta
from kvmeta.client.distinct import Distinct, share_an_id, sorted_sums


@given(st.lists(st.integers(0, 20)), st.booleans())
def test_distinct_keeps_the_same_rows_as_a_dict(numbers: list[int], last: bool) -> None:
    numbers = [number << 64 | number % 3 for number in numbers]  # halves that come again
    distinct = Distinct.of(kvmeta.ids_from_ints(numbers), last=last)
    expected: dict[int, int] = {}
    for i, number in enumerate(numbers):
        if last or number not in expected:
            expected[number] = i
    assert distinct.kept.tolist() == sorted(expected.values())
    assert [int(distinct.kept[place]) for place in distinct.place] == [expected[number] for number in numbers]
    assert distinct.winners().tolist() == [expected[number] == i for i, number in enumerate(numbers)]


@pytest.mark.parametrize("n", [1, 1000])
def test_columns_that_share_an_id_are_detected(n: int) -> None:
    random = np.random.default_rng(n)
    one, other = (np.frombuffer(random.bytes(16 * n), kvmeta.ID).copy() for _ in range(2))
    assert not share_an_id(sorted_sums(one), sorted_sums(other))
    other[n // 2] = one[-1]
    assert share_an_id(sorted_sums(one), sorted_sums(other))
    assert not share_an_id(sorted_sums(one), sorted_sums(other[:0]))
    assert not share_an_id(sorted_sums(one[:0]), sorted_sums(other))
