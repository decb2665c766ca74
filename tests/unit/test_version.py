from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmeta.location import LOCATION
from kvmeta.version import EPOCH_MS, STAMP_STEP, HybridClock, Version, expiry, join, merge, split

entries = st.lists(
    st.tuples(st.sampled_from([0, 1, 5, 5, 2**64 - 1]), st.integers(0, 3), st.integers(0, 300)),
    min_size=5,
    max_size=5,
)
Columns = tuple[np.ndarray, np.ndarray]


def columns(rows: list[tuple[int, int, int]]) -> Columns:
    locations = np.zeros(len(rows), LOCATION)
    locations["volume"] = [row[1] for row in rows]
    locations["offset"] = [row[2] for row in rows]
    return np.array([row[0] for row in rows], np.uint64), locations


def same(a: Columns, b: Columns) -> bool:
    return bool((a[0] == b[0]).all() and a[1].tobytes() == b[1].tobytes())


@given(entries, entries)
def test_merge_is_commutative_and_idempotent(a: list, b: list) -> None:
    x, y = columns(a), columns(b)
    assert same(merge(x, y), merge(y, x))
    assert same(merge(x, x), x)
    assert same(merge(x, merge(x, y)), merge(x, y))


@given(entries, entries, entries)
def test_merge_is_associative(a: list, b: list, c: list) -> None:
    x, y, z = columns(a), columns(b), columns(c)
    assert same(merge(merge(x, y), z), merge(x, merge(y, z)))


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        (0, Version(EPOCH_MS, 0, 0, False, 0)),
        (0x80, Version(EPOCH_MS, 0, 0, True, 0)),
        (0x7F, Version(EPOCH_MS, 0, 0, False, 127)),
        (1 << 8, Version(EPOCH_MS, 0, 1, False, 0)),
        (1 << 18, Version(EPOCH_MS, 1, 0, False, 0)),
        (1 << 23, Version(EPOCH_MS + 1, 0, 0, False, 0)),
        (0x18ACA78D1A7FFFFF, Version(EPOCH_MS + 0x31594F1A34, 31, 1023, True, 127)),
    ],
)
def test_the_published_layout_holds(version: int, parts: Version) -> None:
    assert split(version) == parts
    assert join(parts) == version


@given(st.integers(0, 2**64 - 1))
def test_split_and_join_are_inverse(version: int) -> None:
    assert join(split(version)) == version


def test_stamps_rise_while_the_wall_clock_stands_or_goes_back() -> None:
    times = iter([1000, 1000, 900, 900, 2000])
    clock = HybridClock(slot=3, unix_ms=lambda: EPOCH_MS + next(times))
    stamps = [clock.stamp() for _ in range(5)]
    assert stamps == sorted(set(stamps))
    assert split(stamps[0]) == Version(EPOCH_MS + 1000, 0, 3, False, 0)
    assert split(stamps[4]).unix_ms == EPOCH_MS + 2000


def test_a_counter_that_overflows_borrows_the_next_millisecond() -> None:
    clock = HybridClock(unix_ms=lambda: EPOCH_MS + 5)
    stamps = [clock.stamp() for _ in range(40)]
    assert split(stamps[31]) == Version(EPOCH_MS + 5, 31, 0, False, 0)
    assert split(stamps[32]) == Version(EPOCH_MS + 6, 0, 0, False, 0)


def test_taking_many_stamps_at_once_reserves_all_of_them() -> None:
    clock = HybridClock(unix_ms=lambda: EPOCH_MS + 5)
    first = clock.stamp(100)
    assert clock.stamp() == first + 100 * STAMP_STEP


def test_a_clock_starts_above_what_it_observed() -> None:
    clock = HybridClock(unix_ms=lambda: EPOCH_MS + 5)
    seen = join(Version(EPOCH_MS + 77, 31, 9, True, 127))
    clock.observe(seen)
    assert clock.stamp() > seen


def test_threads_never_get_the_same_stamp() -> None:
    clock = HybridClock()
    out: list[int] = []
    threads = [
        threading.Thread(target=lambda: out.extend(clock.stamp() for _ in range(500))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(out)) == 2000


def test_expiry_counts_from_the_time_stamp() -> None:
    now = EPOCH_MS + 10_000
    alive = join(Version(now - 999, 0, 0, False, 0))
    dead = join(Version(now - 1001, 31, 1023, True, 127))
    assert dead < expiry(1.0, now) <= alive
    assert expiry(None, now) == 0
    assert expiry(1e12, now) == 0
