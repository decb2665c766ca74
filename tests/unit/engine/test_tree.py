"""A tree's memtable grows with what it holds; who reads meanwhile loses nothing."""

from __future__ import annotations

import numpy as np

from kvmeta.engine.manifest import DatasetRecord, TreeRecord
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.tree import FIRST_ROWS, Tree
from kvmeta.engine.wal import Position
from kvmeta.version import HybridClock
from tests.unit.engine.rows import random_rows

LIMIT = 4096


def a_tree() -> Tree:
    options = EngineOptions(memtable_rows_max=LIMIT, batch_rows_max=LIMIT, group_rows_max=LIMIT)
    return Tree(DatasetRecord(1, "d"), TreeRecord(), (), HybridClock(), options)


def test_a_memtable_grows_to_its_limit_and_no_further() -> None:
    tree, rows = a_tree(), random_rows(LIMIT)
    assert tree.mutable.capacity == FIRST_ROWS
    before = tree.view
    for start in range(0, LIMIT, 128):
        assert tree.reserve(128)
        tree.insert(rows[start : start + 128], Position(start, 0), start)
        assert tree.view.lookup(rows[: start + 128, :2].copy(), tree.cold, raw=True).found.all()
    assert not tree.reserve(1)
    assert tree.mutable.capacity == LIMIT
    assert (tree.mutable.sorted_rows()[:, 0] == np.sort(rows[:, 0])).all()
    found = before.lookup(rows[:, :2].copy(), tree.cold, raw=True).found
    assert found[:FIRST_ROWS].all(), "a view from before the growth has what was there then"
    assert not found[FIRST_ROWS:].any()


def test_a_grown_memtable_knows_from_where_on_the_log_is_needed() -> None:
    tree, rows = a_tree(), random_rows(1000)
    first = Position(7, 0)
    for start in (0, 500):
        tree.reserve(500)
        tree.insert(rows[start : start + 500], Position(7 + start, 0), start)
    assert tree.unflushed_before() == first
    assert (tree.mutable.last_sequence, tree.mutable.appended_before) == (508, 0)


def test_after_a_full_memtable_the_next_has_all_its_room() -> None:
    tree, rows = a_tree(), random_rows(LIMIT)
    tree.reserve(LIMIT)
    tree.insert(rows, Position(0, 0), 0)
    tree.freeze()
    assert tree.mutable.capacity == LIMIT
    tree.freeze(3 * LIMIT)
    assert tree.reserve(3 * LIMIT)
