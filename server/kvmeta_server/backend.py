"""Backends: what a server answers from. A store in a directory, or a cluster seen from one of its nodes.

The calls are awaited. Those of a `LocalBackend` never wait, so a thread of a lane runs an answer from its
beginning to its end. Those of a cluster wait for other nodes, so they run on the event loop (`waits`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage
from kvmeta.embedded import EmbeddedDataset, EmbeddedStore
from kvmeta.errors import UnsupportedError
from kvmeta.protocol.codes import State
from kvmeta.protocol.messages import ColumnMessage
from kvmeta.protocol.status import WRONG_NODE
from kvmeta.store import Scan
from kvmeta_server.refusal import Refused

Ids = NDArray[np.void]
Locations = NDArray[np.void]
Versions = NDArray[np.uint64]
States = NDArray[np.uint8]
T = TypeVar("T")


class Named(NamedTuple):
    """The dataset that a call is about: its name and, unless 0, its number, which is never another's."""

    name: str
    number: int = 0


class Backend(Protocol):
    """A store, awaited. Batches are columns that are checked already: ID[n], LOCATION[n], u8[n].

    What a write could not do in full it raises, with what it did, as a `Dataset` does.
    """

    waits: bool
    """Whether calls wait for other nodes: then they run on the event loop."""
    local: EmbeddedStore
    """The store on this machine."""
    store: Any
    """The calls of a `kvmeta.Store` besides batches, awaited, under the same names."""
    volumes: Any
    """The calls of `kvmeta.Volumes`, awaited, under the same names."""

    @property
    def epoch(self) -> int:
        """Return the epoch of the cluster's map; 0 where there is none."""

    def get_map(self) -> ColumnMessage:
        """Return the cluster's map as a GetMapResponse."""

    def check_cluster(self, cluster: bytes) -> None:
        """Raise Refused where this is not a node of a cluster, by its ID."""

    async def lookup(self, dataset: Named, ids: Ids, *, fast: bool) -> tuple[Hits, States]:
        """Return hits, and the state of each ID; `fast`: what one replica has does."""

    async def put(self, dataset: Named, ids: Ids, locations: Locations) -> None:
        """Set locations."""

    async def insert(self, dataset: Named, ids: Ids, locations: Locations) -> Inserted:
        """Set locations of absent IDs."""

    async def delete(self, dataset: Named, ids: Ids) -> None:
        """Remove IDs."""

    async def relocate(self, dataset: Named, ids: Ids, locations: Locations, versions: Versions) -> Relocated:
        """Set locations of IDs that are still of the versions seen."""

    async def scan_page(self, dataset: Named, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows."""


class _Awaited:
    """An object's calls as coroutines, which never wait."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._inner, name)

        async def answered(*arguments: Any, **named: Any) -> Any:
            return call(*arguments, **named)

        return answered


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
        self.store, self.volumes = _Awaited(store), _Awaited(store.volumes)

    def get_map(self) -> ColumnMessage:
        """Raise UnsupportedError."""
        raise UnsupportedError("this is a single server; there is no map")

    def check_cluster(self, cluster: bytes) -> None:
        """Raise Refused: this is no node of a cluster."""
        raise Refused(WRONG_NODE, f"this is a single server, and a node of cluster {cluster.hex()} was meant")

    async def lookup(self, dataset: Named, ids: Ids, *, fast: bool) -> tuple[Hits, States]:
        """Look up IDs."""
        return _Columns(self.local, *dataset).lookup_checked(ids)

    async def put(self, dataset: Named, ids: Ids, locations: Locations) -> None:
        """Set locations."""
        EmbeddedDataset(self.local, *dataset).put(ids, locations)

    async def insert(self, dataset: Named, ids: Ids, locations: Locations) -> Inserted:
        """Set locations of absent IDs."""
        return EmbeddedDataset(self.local, *dataset).insert(ids, locations)

    async def delete(self, dataset: Named, ids: Ids) -> None:
        """Remove IDs."""
        EmbeddedDataset(self.local, *dataset).delete(ids)

    async def relocate(self, dataset: Named, ids: Ids, locations: Locations, versions: Versions) -> Relocated:
        """Set locations of IDs that are still of the versions seen."""
        return EmbeddedDataset(self.local, *dataset).relocate(ids, locations, versions)

    async def scan_page(self, dataset: Named, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan."""
        return EmbeddedDataset(self.local, *dataset).scan_page(scan)


def at_once(answer: Awaitable[T]) -> T:
    """Return what a coroutine returns that never waits, as those over a `LocalBackend`."""
    assert isinstance(answer, Coroutine)
    try:
        answer.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    answer.close()
    raise AssertionError("an answer from this machine's store waits for something")
