"""Backends: what a server answers from. A store in a directory, or a cluster seen from one of its nodes.

The calls are awaited. Those of a `LocalBackend` never wait, so a thread of a lane runs an answer from its
beginning to its end. Those of a cluster wait for other nodes, so they run on the event loop (`waits`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage
from kvmeta.embedded import EmbeddedDataset, EmbeddedStore
from kvmeta.errors import UnsupportedError
from kvmeta.protocol.codes import State
from kvmeta.protocol.messages import ColumnMessage
from kvmeta.store import Scan, StoreStats
from kvmeta.volumes import Volume

Ids = NDArray[np.void]
Locations = NDArray[np.void]
Versions = NDArray[np.uint64]
States = NDArray[np.uint8]


class Backend(Protocol):
    """The calls of a store, columns in and columns out: ID[n], LOCATION[n], u8[n], checked before.

    What a write could not do in full it raises, with what it did, as a `Dataset` does.
    """

    waits: bool
    """Whether calls wait for other nodes: then they run on the event loop."""
    local: EmbeddedStore
    """The store on this machine."""

    @property
    def epoch(self) -> int:
        """Return the epoch of the cluster's map; 0 where there is none."""

    def get_map(self) -> ColumnMessage:
        """Return the cluster's map as a GetMapResponse."""

    async def lookup(self, dataset: str, ids: Ids, *, fast: bool) -> tuple[Hits, States]:
        """Return hits, and the state of each ID; `fast`: what one replica has does."""

    async def put(self, dataset: str, ids: Ids, locations: Locations) -> None:
        """Set locations."""

    async def insert(self, dataset: str, ids: Ids, locations: Locations) -> Inserted:
        """Set locations of absent IDs."""

    async def delete(self, dataset: str, ids: Ids) -> None:
        """Remove IDs."""

    async def relocate(self, dataset: str, ids: Ids, locations: Locations, versions: Versions) -> Relocated:
        """Set locations of IDs that are still of the versions seen."""

    async def scan_page(self, dataset: str, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows."""

    async def create_dataset(self, name: str, *, ttl_s: float | None, bottom_filter: bool) -> None:
        """Create a dataset."""

    async def drop_dataset(self, name: str) -> None:
        """Remove a dataset."""

    async def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""

    async def add_volume(self, uri: str, name: str | None, size_bytes: int | None, codec: str) -> Volume:
        """Register a volume."""

    async def volume(self, name: int | str) -> Volume:
        """Return a volume by number or URI."""

    async def volumes(self) -> list[Volume]:
        """Return all volumes, by number."""

    async def move_volume(self, name: int | str, uri: str) -> Volume:
        """Let a volume stand for another URI."""

    async def set_volume_state(self, name: int | str, state: str) -> Volume:
        """Set a volume's state."""

    async def flush(self) -> None:
        """Write what is in this machine's memory to runs."""

    async def stats(self) -> StoreStats:
        """Return this machine's figures."""


class _Columns(EmbeddedDataset):
    """A dataset asked by columns that are checked already."""

    def lookup_checked(self, ids: Ids) -> tuple[Hits, States]:
        """Look up IDs; damage is a state, not an error."""
        hits = self._lookup(ids)
        states = hits.found.view(np.uint8)
        return hits, np.where(hits.failed, np.uint8(State.FAILED), states) if hits.failed.any() else states


class LocalBackend:
    """A store in a directory."""

    waits = False
    epoch = 0

    def __init__(self, store: EmbeddedStore) -> None:
        self.local = store

    def get_map(self) -> ColumnMessage:
        """Raise UnsupportedError."""
        raise UnsupportedError("this is a single server; there is no map")

    async def lookup(self, dataset: str, ids: Ids, *, fast: bool) -> tuple[Hits, States]:
        """Look up IDs."""
        return _Columns(self.local, dataset).lookup_checked(ids)

    async def put(self, dataset: str, ids: Ids, locations: Locations) -> None:
        """Set locations."""
        self.local.dataset(dataset).put(ids, locations)

    async def insert(self, dataset: str, ids: Ids, locations: Locations) -> Inserted:
        """Set locations of absent IDs."""
        return self.local.dataset(dataset).insert(ids, locations)

    async def delete(self, dataset: str, ids: Ids) -> None:
        """Remove IDs."""
        self.local.dataset(dataset).delete(ids)

    async def relocate(self, dataset: str, ids: Ids, locations: Locations, versions: Versions) -> Relocated:
        """Set locations of IDs that are still of the versions seen."""
        return self.local.dataset(dataset).relocate(ids, locations, versions)

    async def scan_page(self, dataset: str, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan."""
        return self.local.dataset(dataset).scan_page(scan)

    async def create_dataset(self, name: str, *, ttl_s: float | None, bottom_filter: bool) -> None:
        """Create a dataset."""
        self.local.create_dataset(name, ttl_s=ttl_s, bottom_filter=bottom_filter)

    async def drop_dataset(self, name: str) -> None:
        """Remove a dataset."""
        self.local.drop_dataset(name)

    async def datasets(self) -> list[str]:
        """Return the names of the datasets."""
        return self.local.datasets()

    async def add_volume(self, uri: str, name: str | None, size_bytes: int | None, codec: str) -> Volume:
        """Register a volume."""
        return self.local.volumes.add(uri, name=name, size_bytes=size_bytes, codec=codec)

    async def volume(self, name: int | str) -> Volume:
        """Return a volume by number or URI."""
        return self.local.volumes.get(name)

    async def volumes(self) -> list[Volume]:
        """Return all volumes."""
        return self.local.volumes.list()

    async def move_volume(self, name: int | str, uri: str) -> Volume:
        """Let a volume stand for another URI."""
        return self.local.volumes.move(name, uri)

    async def set_volume_state(self, name: int | str, state: str) -> Volume:
        """Set a volume's state."""
        return self.local.volumes.set_state(name, state)

    async def flush(self) -> None:
        """Write what is in memory to runs."""
        self.local.flush()

    async def stats(self) -> StoreStats:
        """Return the store's figures."""
        return self.local.stats()


def at_once(answer: Any) -> Any:
    """Return what a coroutine returns that never waits, as those over a `LocalBackend`."""
    try:
        answer.send(None)
    except StopIteration as end:
        return end.value
    answer.close()
    raise AssertionError("an answer from this machine's store waits for something")
