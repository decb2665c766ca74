"""Scans of a cluster: quorums of neighbouring partitions, several at once, each ID once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvmeta
from kvmeta.embedded import words_of
from kvmeta.engine.distinct import Distinct
from kvmeta.store import Scan
from kvmeta_server.cluster import scanning
from kvmeta_server.cluster.scanning import Scanning
from tests.unit.kvmeta_server.cluster.replicas import Replicas, put

PARTITIONS = 4096
FEW = 256


class Counted(Replicas):
    """Replicas that count the rounds in which they are asked for rows: calls under way at once are one."""

    rounds = 0
    most = 0
    _under_way = 0

    async def rows(self, slot: int, *args: Any) -> Any:
        self._under_way += 1
        self.rounds += self._under_way == 1
        self.most = max(self.most, self._under_way)
        await asyncio.sleep(0)
        try:
            return await super().rows(slot, *args)
        finally:
            self._under_way -= 1


@pytest.fixture
def four(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Counted]:
    made = Counted(tmp_path, 4, partitions=getattr(request, "param", FEW))
    yield made
    made.close()


def scan(replicas: Counted, **named: Any) -> list[kvmeta.ScanPage]:
    """Return all pages of a scan that have entries."""
    keys = replicas.stores[0].engine.keys
    one = Scanning(replicas.maps, replicas, replicas.coordinator, keys)
    pages, asked, done = [], Scan(**named), False
    while not done:
        page, done = replicas.run(one.page("default", "default", asked))
        asked = replace(asked, after=page.cursor)
        pages.append(page)
    return [page for page in pages if len(page)]


def put_some(replicas: Counted, n: int) -> np.ndarray:
    """Put entries at all nodes; return their IDs."""
    ids = kvmeta.ids_from_ints(np.arange(n, dtype=np.uint64))
    keys = replicas.stores[0].engine.keys
    rows = Distinct.of(words_of(ids, 2), np.zeros((n, 3), np.uint64), keys, last=True).rows
    put(replicas, rows, *replicas.replicas)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("four", [PARTITIONS], indirect=True)
def test_scanning_an_empty_dataset_takes_few_rounds(four: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PAGE_S", 3600.0)
    runs = np.unique(four.coordinator.preference(four.maps.current).runs)
    assert len(runs) > 1000
    assert scan(four) == []
    assert four.rounds < len(runs) / 32
    assert four.most <= 2 * scanning.RUNS_AT_ONCE


@pytest.mark.parametrize("page_rows", [7, 500])
def test_a_sparse_dataset_is_scanned_whole_and_each_entry_once(four: Counted, page_rows: int) -> None:
    ids = put_some(four, 600)
    pages = scan(four, page_rows=page_rows)
    seen = np.concatenate([page.ids for page in pages])
    assert len(seen) == 600
    assert set(seen.tolist()) == set(ids.tolist())
    assert all(len(page) <= page_rows for page in pages)
    assert (scan(four, after=b"\xff" * 16)) == []


@pytest.mark.slow
def test_a_scan_skips_no_entries_of_partitions_that_need_several_calls(
    four: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_RUN_ROWS", 1)
    ids = put_some(four, 3000)
    seen = np.concatenate([page.ids for page in scan(four, page_rows=100)])
    assert sorted(seen.tolist()) == sorted(ids.tolist())


def test_a_scan_page_ends_in_time_with_a_usable_cursor(
    four: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PAGE_S", 0.0)
    put_some(four, 200)
    pages = scan(four, sample=0.25)
    assert len(pages) > 1
    monkeypatch.undo()
    (whole,) = scan(four, sample=0.25)
    assert np.concatenate([page.ids for page in pages]).tolist() == whole.ids.tolist()
