"""The engine's twin in memory keeps the contract, and what it was told over its lives."""

from __future__ import annotations

import numpy as np
import pytest

import kvmeta
from kvmeta.errors import UnavailableError
from kvmeta.testing.memory import MemoryDisk, MemoryEngine, MemoryStore
from tests.contract.batches import locations, many
from tests.contract.test_contract import StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> kvmeta.Store:
        return MemoryStore()


def test_acknowledged_changes_survive_a_restart() -> None:
    disk = MemoryDisk()
    store = MemoryStore(MemoryEngine(disk))
    store.create_dataset("other").put(many(10), locations(10, volume=2))
    store.dataset().put(many(1000), locations(1000))
    store.dataset().delete(many(300))
    store.compact()
    store.dataset().put(many(100), locations(100, volume=3))
    again = MemoryStore(MemoryEngine(disk))
    hits = again.dataset().lookup(many(1000))
    assert (hits.found == ((np.arange(1000) < 100) | (np.arange(1000) >= 300))).all()
    assert (hits.locations["volume"][:100] == 3).all()
    assert again.dataset("other").lookup(many(10)).found.all()


@pytest.mark.parametrize("kept", [False, True])
def test_a_failed_sync_stops_writes_until_a_restart(kept: bool) -> None:
    disk = MemoryDisk(keep_failed=lambda: kept)
    store = MemoryStore(MemoryEngine(disk))
    store.dataset().put(many(10), locations(10))
    disk.fail = lambda: UnavailableError("input/output error")
    with pytest.raises(UnavailableError):
        store.dataset().put(many(10, 10), locations(10))
    disk.fail = lambda: None
    with pytest.raises(UnavailableError, match="takes no writes"):
        store.dataset().put(many(10, 20), locations(10))
    hits = MemoryStore(MemoryEngine(disk)).dataset().lookup(many(30))
    assert hits.found[:10].all()
    assert (hits.found[10:20] == kept).all()
    assert not hits.found[20:].any()
