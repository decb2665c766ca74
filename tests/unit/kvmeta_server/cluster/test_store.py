"""Scans of a cluster: quorums of neighbouring partitions, several at once, each ID once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvmeta
from kvmeta_server.cluster import store as coordinated
from kvmeta_server.cluster.store import CoordinatedDataset, CoordinatedStore
from tests.unit.kvmeta_server.cluster.replicas import Replicas

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


def dataset_of(replicas: Counted) -> CoordinatedDataset:
    store = CoordinatedStore(
        replicas.stores[0], replicas.replicas[0], replicas.coordinator, replicas.maps, replicas,
        Names(), replicas.loop,
    )  # type: ignore[arg-type]  # fmt: skip
    store.run = replicas.run  # type: ignore[method-assign]
    return store.dataset()


def put_some(dataset: CoordinatedDataset, n: int) -> np.ndarray:
    ids = kvmeta.ids_from_ints(np.arange(n, dtype=np.uint64))
    dataset.put(ids, np.zeros(n, kvmeta.LOCATION))
    return ids


class Names:
    """Tables of one dataset."""

    def local_name(self, dataset: str) -> str:
        return dataset


@pytest.mark.parametrize("four", [PARTITIONS], indirect=True)
def test_an_empty_dataset_is_scanned_in_few_rounds_however_many_partitions(
    four: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinated, "PAGE_S", 3600.0)
    runs = np.unique(four.coordinator.preference(four.maps.current).runs)
    assert len(runs) > 1000
    assert list(dataset_of(four).scan()) == []
    assert four.rounds < len(runs) / 32
    assert four.most <= 2 * coordinated.RUNS_AT_ONCE


@pytest.mark.parametrize("page_rows", [7, 500])
def test_a_sparse_dataset_is_scanned_whole_and_each_entry_once(four: Counted, page_rows: int) -> None:
    dataset = dataset_of(four)
    ids = put_some(dataset, 600)
    pages = list(dataset.scan(page_rows=page_rows))
    seen = np.concatenate([page.ids for page in pages])
    assert len(seen) == 600
    assert set(seen.tolist()) == set(ids.tolist())
    assert all(len(page) <= page_rows for page in pages)
    assert list(dataset.scan(after=b"\xff" * 16)) == []


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_skipped_for_the_ones_behind_it(
    four: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinated, "_RUN_ROWS", 1)
    dataset = dataset_of(four)
    ids = put_some(dataset, 3000)
    seen = np.concatenate([page.ids for page in dataset.scan(page_rows=100)])
    assert sorted(seen.tolist()) == sorted(ids.tolist())


def test_a_page_ends_in_time_with_a_cursor_that_goes_on(
    four: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinated, "PAGE_S", 0.0)
    dataset = dataset_of(four)
    put_some(dataset, 200)
    pages = list(dataset.scan(sample=0.25))
    assert len(pages) > 1
    monkeypatch.undo()
    (whole,) = dataset.scan(sample=0.25)
    assert np.concatenate([page.ids for page in pages]).tolist() == whole.ids.tolist()
