"""Hedged lookups: where one server takes unusually long another is asked, and the first answer counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvmeta
import kvmeta.aio
from kvmeta.embedded import EmbeddedDataset, EmbeddedStore
from tests.serving import served

IDS = kvmeta.ids_from_ints(np.arange(10, dtype=np.uint64))
OPTIONS = kvmeta.ClientOptions(hedge=True, timeout_s=240, failover_s=240)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, threading.Event]]:
    """Give the target of two servers, and the event until which the first one's lookups hang.

    What the first one holds has volume 1, what the second one holds volume 2.
    """
    go_on = threading.Event()
    lookup = EmbeddedDataset._lookup

    def slow(self: EmbeddedDataset, ids: Any) -> Any:
        hits = lookup(self, ids)
        if (hits.locations["volume"] == 1).any():
            go_on.wait()
        return hits

    places = np.zeros(len(IDS), kvmeta.LOCATION)
    with EmbeddedStore(tmp_path / "first") as first, EmbeddedStore(tmp_path / "second") as second:
        for volume, store in ((1, first), (2, second)):
            places["volume"] = volume
            store.dataset().put(IDS, places)
        with served(first) as one, served(second) as other:
            monkeypatch.setattr(EmbeddedDataset, "_lookup", slow)
            try:
                yield f"{one},{other.removeprefix('kvmeta://')}", go_on
            finally:
                go_on.set()


def test_a_lookup_that_hangs_is_answered_by_another_server(hanging: tuple[str, threading.Event]) -> None:
    target, _ = hanging
    with kvmeta.open(target, options=OPTIONS) as store:
        assert (store.dataset().lookup(IDS).locations["volume"] == 2).all()


def test_an_awaited_lookup_that_hangs_is_answered_by_another_server(
    hanging: tuple[str, threading.Event],
) -> None:
    target, _ = hanging

    async def work() -> None:
        async with kvmeta.aio.open(target, options=OPTIONS) as store:
            ds = await store.dataset()
            assert ((await ds.lookup(IDS)).locations["volume"] == 2).all()

    asyncio.run(work())


def test_without_hedging_the_server_that_was_asked_answers(hanging: tuple[str, threading.Event]) -> None:
    target, go_on = hanging
    with kvmeta.open(target, options=kvmeta.ClientOptions(timeout_s=240, failover_s=240)) as store:
        threading.Timer(0.3, go_on.set).start()
        assert (store.dataset().lookup(IDS).locations["volume"] == 1).all()
