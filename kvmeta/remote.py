"""The remote store: the public contract over a server or a cluster, for callers that block.

    RemoteDataset ── program (client/programs.py) ──> Connection.run ── a few messages in flight ──> server

A store may be used by any number of threads. A fork waits for the calls of other threads, and the child
makes a connection of its own. A pickled store connects anew where it is unpickled. So workers of data
loaders just use the store they are given.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage, as_batches
from kvmeta.client.calls import Program
from kvmeta.client.connections import Connection
from kvmeta.client.options import ClientOptions
from kvmeta.client.programs import DatasetPrograms
from kvmeta.location import Location
from kvmeta.store import Dataset, Progress, Scan, Store, StoreStats, VerifyReport, as_one_id
from kvmeta.volumes import NewVolume, Volume, Volumes

T = TypeVar("T")
Ids = NDArray[np.void]
Locations = NDArray[np.void]


class RemoteStore(Store):
    """A store behind a server. mode "r" refuses writes here, whatever the server would say."""

    def __init__(self, target: str, mode: str = "a", options: ClientOptions | None = None) -> None:
        self.connection = Connection(target, options or ClientOptions(), mode)
        self.connection.limits()
        self._programs = self.connection.programs
        self.volumes = RemoteVolumes(self)

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, str, ClientOptions]]:
        connection = self.connection
        return RemoteStore, (connection.target, self.mode, connection.options)

    def __repr__(self) -> str:
        return f'<kvmeta store {self.connection.target}, mode "{self.mode}">'

    @property
    def mode(self) -> str:
        """Return "a", or "r" where writes are refused."""
        return self.connection.mode

    def run(self, program: Program[T], *, writes: bool = False) -> T:
        """Run a program over the connection."""
        if writes:
            self.connection.check_writes()
        return self.connection.run(program)

    def dataset(self, name: str = "default") -> RemoteDataset:
        """Return a dataset; NotFoundError if there is none of that name."""
        return RemoteDataset(self, name, self.run(self._programs.dataset(name)))

    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> RemoteDataset:
        """Create a dataset; its options are fixed from now on."""
        number = self.run(self._programs.create_dataset(name, ttl_s, bottom_filter), writes=True)
        return RemoteDataset(self, name, number)

    def drop_dataset(self, name: str) -> None:
        """Remove a dataset and all its entries."""
        self.run(self._programs.drop_dataset(name), writes=True)

    def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""
        return self.run(self._programs.datasets())

    def flush(self) -> None:
        """Write what is in memory to the runs on disk; it was durable before."""
        self.run(self._programs.flush(), writes=True)

    def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge each dataset's runs into one: a job of the server, which goes on if this call ends."""
        self.run(self._programs.compact(discard_damaged, progress), writes=True)

    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every segment page and report what is not as it was written: a job of the server."""
        return self.run(self._programs.verify(progress))

    def stats(self) -> StoreStats:
        """Return figures about the store; `path` is the server's."""
        return self.run(self._programs.stats())

    def refresh(self) -> None:
        """Do nothing: a server always answers with its current state."""
        self.connection.check_open()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.connection.close()


class RemoteDataset(Dataset):
    """A dataset behind a server, by name and, unless 0, by number."""

    def __init__(self, store: RemoteStore, name: str, number: int = 0) -> None:
        self._store = store
        self.name = name
        self._number = number
        connection = store.connection
        self._programs = DatasetPrograms(
            name, connection.options, connection.limits().batch_rows_max, connection.router, number
        )

    def __reduce__(self) -> tuple[type[RemoteDataset], tuple[RemoteStore, str, int]]:
        return RemoteDataset, (self._store, self.name, self._number)

    def __repr__(self) -> str:
        return f"<kvmeta dataset {self.name!r} of {self._store.connection.target}>"

    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Put (ids, locations) batches, several messages in flight, and return the rows put.

        Unlike an embedded load it is not visible whole at its end: what was put before a failure stays. Later
        batches win over earlier ones.
        """
        return self._store.run(self._programs.load(as_batches(batches)), writes=True)

    def get(self, one_id: Any) -> Location | None:
        """Return one ID's location, or None. A str is a key."""
        return self._store.run(self._programs.get(as_one_id(one_id)))

    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows."""
        return self._store.run(self._programs.scan_page(scan))

    def _lookup(self, ids: Ids, *, mask: bool = False) -> Hits:
        return self._store.run(self._programs.lookup(ids, mask=mask))

    def _put(self, ids: Ids, locations: Locations) -> None:
        self._store.run(self._programs.put(ids, locations), writes=True)

    def _insert(self, ids: Ids, locations: Locations) -> Inserted:
        return self._store.run(self._programs.insert(ids, locations), writes=True)

    def _delete(self, ids: Ids) -> None:
        self._store.run(self._programs.delete(ids), writes=True)

    def _relocate(self, ids: Ids, locations: Locations, versions: NDArray[np.uint64]) -> Relocated:
        return self._store.run(self._programs.relocate(ids, locations, versions), writes=True)

    def _volumes(self, numbers: list[int]) -> list[Volume]:
        return self._store.run(self._store.connection.programs.volumes(numbers))


class RemoteVolumes(Volumes):
    """The server's table of volumes."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._programs = store.connection.programs

    def register(self, wanted: builtins.list[NewVolume]) -> builtins.list[Volume]:
        """Register volumes that are checked already."""
        return self._store.run(self._programs.add_volumes(wanted), writes=True)

    def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        return self._store.run(self._programs.volumes([volume]))[0]

    def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        return self._store.run(self._programs.list_volumes())

    def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` stand for another URI from now on; every entry in it follows."""
        return self._store.run(self._programs.update_volume(volume, uri=uri), writes=True)

    def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online", "offline" or "retired"."""
        return self._store.run(self._programs.update_volume(volume, state=state), writes=True)
