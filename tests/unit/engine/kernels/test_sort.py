from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmeta.engine.kernels.sort import gather_latest, sort_order, winners
from tests.unit.engine.rows import by_id, random_rows

small_ids = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=60)


def rows_of(triples: list[tuple[int, int, int]]) -> np.ndarray:
    rows = np.zeros((len(triples), 6), np.uint64)
    for i, triple in enumerate(triples):
        rows[i, :3] = triple
        rows[i, 4] = i
    return rows


@pytest.mark.parametrize("n", [0, 1, 2, 100, 5000, 70_000])
def test_random_rows_come_in_the_order_of_their_ids(n: int) -> None:
    rows = random_rows(n)
    assert (rows[sort_order(rows)] == by_id(rows)).all()


def test_rows_of_a_narrow_hash_range_are_sorted_too() -> None:
    rows = random_rows(20_000)
    rows[:, 0] = rows[:, 0] % np.uint64(1000) + np.uint64(1 << 60)
    assert (rows[sort_order(rows)] == by_id(rows)).all()


@given(small_ids)
def test_the_order_is_stable(triples: list[tuple[int, int, int]]) -> None:
    rows = rows_of(triples)
    assert (rows[sort_order(rows)] == by_id(rows)).all()


@given(small_ids)
def test_gathering_keeps_the_latest_row_of_each_id(triples: list[tuple[int, int, int]]) -> None:
    rows, latest = rows_of(triples), {}
    for row in rows:
        key = (int(row[0]), int(row[1]))
        if key not in latest or row[2] >= latest[key][2]:
            latest[key] = row
    out = np.empty_like(rows)
    m = gather_latest(rows, sort_order(rows), out)
    assert out[:m].tolist() == [latest[key].tolist() for key in sorted(latest)]


@given(small_ids, st.booleans())
def test_each_row_names_the_winner_of_its_id(triples: list[tuple[int, int, int]], last: bool) -> None:
    rows = rows_of(triples)
    winner = np.empty(len(rows), np.int64)
    places: dict[tuple[int, int], int] = {}
    for i, (high, low, _) in enumerate(triples):
        places[(high, low)] = i if last else places.get((high, low), i)
    assert winners(rows, last, winner) == len(places)
    assert winner.tolist() == [places[(high, low)] for high, low, _ in triples]
