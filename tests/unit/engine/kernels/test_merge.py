from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmeta.engine.kernels.merge import ACCEPTED, REFUSED, STALE, merge, weigh
from kvmeta.location import LOCATION
from kvmeta.version import MOVE_BITS, TOMBSTONE
from kvmeta.version import merge as reference
from tests.unit.engine.rows import by_id, random_rows

versions = st.sampled_from([1 << 23, 1 << 24, 1 << 24 | TOMBSTONE, 3 << 23])
stretches = st.lists(
    st.dictionaries(st.integers(0, 12), st.tuples(versions, st.integers(0, 300))), min_size=1, max_size=6
)


def lay(parts: list[dict[int, tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, heads, ends = [], [], []
    for part in parts:
        heads.append(len(rows))
        for key, (version, offset) in sorted(part.items()):
            rows.append([key // 3, key % 3, version, 0, offset, 0])
        ends.append(len(rows))
    return np.array(rows, np.uint64).reshape(-1, 6), np.array(heads, np.uint64), np.array(ends, np.uint64)


@pytest.mark.slow
@given(stretches, st.sampled_from([0, 1 << 24, 4 << 23]), st.sampled_from([0, 1 << 24]))
def test_a_merge_keeps_the_largest_versions_and_drops_only_allowed_rows(
    parts: list[dict[int, tuple[int, int]]], purge: int, expired: int
) -> None:
    rows, heads, ends = lay(parts)
    expected = {}
    for part in parts:
        for key, (version, offset) in part.items():
            location = np.zeros(1, LOCATION)
            location["offset"] = offset
            entry = (np.array([version], np.uint64), location)
            expected[key] = reference(expected[key], entry) if key in expected else entry
    wanted = []
    for key, (version, location) in sorted(expected.items()):
        dead = int(version[0]) & TOMBSTONE and int(version[0]) < purge
        if int(version[0]) >= expired and not dead:
            wanted.append([key // 3, key % 3, int(version[0]), 0, int(location["offset"][0]), 0])
    out = np.empty_like(rows)
    m = merge(rows, heads, ends, np.uint64(purge), np.uint64(expired), out)
    assert out[:m].tolist() == wanted


entries = st.tuples(
    st.sampled_from([1 << 23, 1 << 23 | 1, 2 << 23, 2 << 23 | TOMBSTONE]), st.integers(0, 300)
)


@given(st.lists(st.tuples(entries, st.none() | entries, st.sampled_from([0, 1 << 23, 3 << 23])), max_size=9))
def test_weighing_accepts_what_a_merge_would_keep_unless_a_promise_forbids_it(
    cases: list[tuple[tuple[int, int], tuple[int, int] | None, int]],
) -> None:
    n = len(cases)
    rows, versions, locations = np.zeros((n, 6), np.uint64), np.zeros(n, np.uint64), np.zeros(n, LOCATION)
    wanted = []
    for i, ((version, offset), held, promised) in enumerate(cases):
        rows[i, 2], rows[i, 4] = version, offset
        if held is not None:
            versions[i], locations["offset"][i] = held
        held = held or (0, 0)
        bytes_of = [np.array(each[1], "<u8").tobytes() for each in ((version, offset), held)]
        wins = (version, bytes_of[0]) >= (held[0], bytes_of[1])
        fresh = version > held[0] and version >> MOVE_BITS != held[0] >> MOVE_BITS
        outcome = STALE if not wins else REFUSED if fresh and version <= promised else ACCEPTED
        wanted.append((outcome, outcome == ACCEPTED and (version, offset) != held))
    outcome, news = np.empty(n, np.uint8), np.empty(n, np.bool_)
    promises = np.array([promised for _, _, promised in cases], np.uint64)
    weigh(rows, versions, locations.view(np.uint64).reshape(n, 3), promises, outcome, news)
    assert list(zip(outcome.tolist(), news.tolist(), strict=True)) == wanted


def test_merging_many_long_inputs_gives_rows_in_hash_order() -> None:
    parts = [by_id(random_rows(3000, seed)) for seed in range(9)]
    rows = np.concatenate(parts)
    ends = np.arange(1, 10, dtype=np.uint64) * np.uint64(3000)
    out = np.empty_like(rows)
    m = merge(rows, ends - np.uint64(3000), ends.copy(), np.uint64(0), np.uint64(0), out)
    assert m == len(rows)
    assert (out == by_id(rows)).all()
