from __future__ import annotations

import threading

import numpy as np
import pytest

from kvmeta.engine.memtable import Memtable
from kvmeta.engine.view import ColdReads, View
from kvmeta.engine.wal import WAL_START
from tests.unit.engine.rows import by_id, random_rows


def test_rows_are_found_until_a_newer_one_replaces_them() -> None:
    memtable = Memtable(1000)
    rows = random_rows(400, version=1 << 23)
    memtable.insert(rows, WAL_START)
    newer = rows[:100].copy()
    newer[:, 2], newer[:, 4] = 2 << 23, 7
    memtable.insert(newer, WAL_START)
    got = View((memtable,), ()).lookup(np.ascontiguousarray(rows[:, :2]), ColdReads())
    assert got.found.all()
    assert (got.locations[:100, 1] == 7).all()
    assert (got.locations[100:] == rows[100:, 3:]).all()


def test_an_older_row_that_comes_later_does_not_win() -> None:
    memtable = Memtable(10)
    row = random_rows(1, version=5 << 23)
    memtable.insert(row, WAL_START)
    older = row.copy()
    older[:, 2], older[:, 4] = 4 << 23, 1
    memtable.insert(older, WAL_START)
    got = View((memtable,), ()).lookup(np.ascontiguousarray(row[:, :2]), ColdReads())
    assert got.versions[0] == 5 << 23
    assert (memtable.sorted_rows() == row).all()


def test_sorted_rows_hold_each_id_in_the_range_once() -> None:
    memtable = Memtable(9000)
    rows = random_rows(9000)
    memtable.insert(rows, WAL_START)
    expected = by_id(rows)
    assert (memtable.sorted_rows() == expected).all()
    first, last = int(expected[1000, 0]), int(expected[8000, 0])
    assert (memtable.sorted_rows(first, last) == expected[1000:8001]).all()
    assert len(memtable.sorted_rows(0, 0)) == 0


def test_more_rows_than_fit_are_refused() -> None:
    memtable = Memtable(10)
    with pytest.raises(ValueError, match="do not fit"):
        memtable.insert(random_rows(11), WAL_START)


def test_readers_beside_the_writer_see_whole_rows() -> None:
    memtable = Memtable(200_000)
    rows = random_rows(20)
    ids = np.ascontiguousarray(rows[:, :2])
    memtable.insert(rows, WAL_START)
    view, wrong, done = View((memtable,), ()), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            got = view.lookup(ids, ColdReads())
            if not got.found.all() or (
                (got.versions != got.locations[:, 1]).any() and got.versions.max() > 1 << 23
            ):
                wrong.append(got)

    thread = threading.Thread(target=read)
    rows[:, 4] = rows[:, 2]
    memtable.insert(rows, WAL_START)
    thread.start()
    for i in range(2, 2000):
        rows[:, 2] = rows[:, 4] = i << 23
        memtable.insert(rows, WAL_START)
    done.set()
    thread.join()
    assert not wrong


def test_repeated_range_queries_between_inserts_return_correct_rows() -> None:
    """From the third question on they come from an order that is kept; what came since is looked through."""
    random = np.random.default_rng(5)
    table = Memtable(60_000)
    held: dict[tuple[int, int], int] = {}
    for version in range(1, 6):
        rows = np.zeros((10_000, 6), np.uint64)
        rows[:, :2] = random.integers(0, 20_000, (10_000, 1)) * (1 << 49) + np.arange(2, dtype=np.uint64)
        rows = rows[np.unique(rows[:, 0], return_index=True)[1]]
        rows[:, 2] = version
        table.insert(rows, WAL_START)
        held |= {(int(row[0]), int(row[1])): version for row in rows}
        for _ in range(4):
            first = int(random.integers(0, 1 << 63))
            last = first + int(random.integers(0, 1 << 61))
            got = table.sorted_rows(first, last)
            expected = sorted((key, each) for key, each in held.items() if first <= key[0] <= last)
            assert [((int(r[0]), int(r[1])), int(r[2])) for r in got] == expected
