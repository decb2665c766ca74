"""The contract suite: the same sentences hold for every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from tests.contract.batches import SMALL, BatchContract
from tests.contract.bridge import BridgedStore
from tests.contract.catalogue import CatalogueContract
from tests.contract.model import ModelStore
from tests.serving import served


class StoreContract(BatchContract, CatalogueContract):
    """What every store does."""


class TestModel(StoreContract):
    @pytest.fixture
    def store(self) -> kvmeta.Store:
        return ModelStore()


class TestEmbedded(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[kvmeta.Store]:
        with kvmeta.open(tmp_path / "catalog") as store:
            yield store


class TestEmbeddedWithTinyLimits(StoreContract):
    """Every flush, merge and boundary happens within a few thousand rows."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[kvmeta.Store]:
        with EmbeddedStore(tmp_path / "catalog", options=SMALL) as store:
            yield store


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "catalog", options=SMALL) as store:
        yield store


@pytest.mark.slow
class TestServer(StoreContract):
    """One server, asked by the blocking SDK; batches are split into small messages."""

    loads_whole = False

    @pytest.fixture
    def store(self, small_store: EmbeddedStore) -> Iterator[kvmeta.Store]:
        options = kvmeta.ClientOptions(lookup_rows=100, compression="lz4")
        with (
            served(small_store, limits__batch_rows_max=256) as target,
            kvmeta.open(target, options=options) as store,
        ):
            yield store


@pytest.mark.slow
class TestServerAsked(StoreContract):
    """One server, asked by the asyncio SDK."""

    loads_whole = False

    @pytest.fixture
    def store(self, small_store: EmbeddedStore) -> Iterator[kvmeta.Store]:
        with (
            served(small_store, limits__batch_rows_max=256) as target,
            BridgedStore(target, kvmeta.ClientOptions(lookup_rows=100)) as store,
        ):
            yield store
