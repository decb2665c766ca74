"""The asyncio SDK: the contract of `kvmeta.Store` and `kvmeta.Dataset`, awaited.

    async with kvmeta.aio.open("kvmeta://localhost:7400") as store:
        ds = await store.dataset()
        hit = await ds.lookup(ids)
        one = await ds.get("train/0001.jpg")  # concurrent gets travel as one batch

Everything asked and answered is described in `client/programs.py`, which the blocking SDK shares. A store
belongs to the event loop that first uses it. gRPC's asyncio client does not survive a fork: a process forked
from one that used it is refused here; start such processes by spawn or forkserver.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage, as_batches, as_versions
from kvmeta.client.calls import Program
from kvmeta.client.connections import AsyncConnection
from kvmeta.client.gathering import Gathering
from kvmeta.client.options import SCHEME, ClientOptions
from kvmeta.client.programs import DatasetPrograms
from kvmeta.errors import UnsupportedError
from kvmeta.files import local, plan
from kvmeta.ids import as_ids
from kvmeta.location import Location, as_locations
from kvmeta.store import (
    OnError,
    Progress,
    Scan,
    StoreStats,
    VerifyReport,
    answered,
    as_one_id,
    check_on_error,
    inserted,
    relocated,
)
from kvmeta.volumes import Several, Volume, new_volumes

T = TypeVar("T")


def open(target: str, mode: str = "a", *, options: ClientOptions | None = None) -> AsyncStore:  # noqa: A001
    """Return the store behind "kvmeta://host:port"; it connects when it is first used or entered.

    mode "a" writes, "r" refuses to. A directory has nothing to wait for: use kvmeta.open and
    asyncio.to_thread.
    """
    if not isinstance(target, str) or not target.startswith(f"{SCHEME}://"):
        raise UnsupportedError(
            f'kvmeta.aio.open: expected "{SCHEME}://host:port", got {target!r}; '
            "for a directory use kvmeta.open with asyncio.to_thread"
        )
    return AsyncStore(target, mode, options)


class AsyncStore:
    """A store behind a server, awaited; see `kvmeta.Store` for what each method does.

    Use it as an async context manager, or call `close`.
    """

    def __init__(self, target: str, mode: str = "a", options: ClientOptions | None = None) -> None:
        self.connection = AsyncConnection(target, options or ClientOptions(), mode)
        self._programs = self.connection.programs
        self.volumes = AsyncVolumes(self)

    def __repr__(self) -> str:
        return f'<kvmeta async store {self.connection.target}, mode "{self.mode}">'

    @property
    def mode(self) -> str:
        """Return "a", or "r" where writes are refused."""
        return self.connection.mode

    async def __aenter__(self) -> Self:
        await self.connection.limits()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, program: Program[T], *, writes: bool = False) -> T:
        """Run a program over the connection."""
        if writes:
            self.connection.check_writes()
        return await self.connection.run(program)

    async def dataset(self, name: str = "default") -> AsyncDataset:
        """Return a dataset; NotFoundError if there is none of that name."""
        return await self._dataset(name, await self.run(self._programs.dataset(name)))

    async def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> AsyncDataset:
        """Create a dataset; its options are fixed from now on."""
        number = await self.run(self._programs.create_dataset(name, ttl_s, bottom_filter), writes=True)
        return await self._dataset(name, number)

    async def drop_dataset(self, name: str) -> None:
        """Remove a dataset and all its entries."""
        await self.run(self._programs.drop_dataset(name), writes=True)

    async def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""
        return await self.run(self._programs.datasets())

    async def flush(self) -> None:
        """Write what is in memory to the runs on disk; it was durable before."""
        await self.run(self._programs.flush(), writes=True)

    async def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge each dataset's runs into one: a job of the server, which goes on if this call ends."""
        await self.run(self._programs.compact(discard_damaged, progress), writes=True)

    async def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every segment page and report what is not as it was written: a job of the server."""
        return await self.run(self._programs.verify(progress))

    async def stats(self) -> StoreStats:
        """Return figures about the store; `path` is the server's."""
        return await self.run(self._programs.stats())

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self.connection.close()

    async def _dataset(self, name: str, number: int) -> AsyncDataset:
        connection = self.connection
        rows_max = (await connection.limits()).batch_rows_max
        programs = DatasetPrograms(name, connection.options, rows_max, connection.router, number)
        return AsyncDataset(self, programs)


class AsyncDataset:
    """A dataset behind a server, awaited; see `kvmeta.Dataset` for what each method does."""

    def __init__(self, store: AsyncStore, programs: DatasetPrograms) -> None:
        self.name = programs.name
        self._store = store
        self._programs = programs
        rows_max = min(programs.options.lookup_rows, programs.rows_max)
        self._gets = Gathering(self._lookup, rows_max)

    def __repr__(self) -> str:
        return f"<kvmeta async dataset {self.name!r} of {self._store.connection.target}>"

    async def lookup(self, ids: Any, *, on_error: OnError = "raise") -> Hits:
        """Return the locations of `ids` as columns."""
        check_on_error(on_error)
        return answered(self.name, await self._lookup(as_ids(ids), mask=on_error == "mask"), on_error)

    async def get(self, one_id: Any) -> Location | None:
        """Return one ID's location, or None. Gets that are under way at once travel as one batch."""
        hits, row = await self._gets.ask(as_one_id(one_id))
        if hits.failed[row]:
            answered(self.name, _row(hits, row), "raise")
        return Location(*hits.locations[row].tolist()) if hits.found[row] else None

    async def put(self, ids: Any, locations: Any) -> None:
        """Set the location of each ID; durable when it returns. Of duplicates the last wins."""
        column = as_ids(ids)
        await self._store.run(self._programs.put(column, as_locations(locations, len(column))), writes=True)

    async def insert(self, ids: Any, locations: Any) -> Inserted:
        """Set the location of each absent ID; of duplicates the first wins."""
        column = as_ids(ids)
        program = self._programs.insert(column, as_locations(locations, len(column)))
        return inserted(self.name, await self._store.run(program, writes=True))

    async def delete(self, ids: Any) -> None:
        """Remove each ID, held or not; durable when it returns."""
        await self._store.run(self._programs.delete(as_ids(ids)), writes=True)

    async def relocate(self, ids: Any, locations: Any, versions: Any) -> Relocated:
        """Set the location of each ID whose held version is still that of `versions`."""
        column = as_ids(ids)
        n = len(column)
        program = self._programs.relocate(column, as_locations(locations, n), as_versions(versions, n))
        return relocated(self.name, await self._store.run(program, writes=True))

    def scan(
        self,
        *,
        page_rows: int = 65_536,
        sample: float = 1.0,
        tag: int | None = None,
        after: bytes | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> AsyncIterator[ScanPage]:
        """Yield every live entry, in pages of up to `page_rows`, in hash order."""
        return self._pages(Scan(page_rows, sample, tag, after, shard))

    async def read(self, ids: Any) -> list[bytes | None]:
        """Return the bytes of each ID's file, None where the ID is absent; read by threads."""
        hits = await self.lookup(ids)
        numbers = plan.volume_numbers(hits.locations, hits.found)
        volumes = await self._store.run(self._store.connection.programs.volumes(numbers))
        return await asyncio.to_thread(local.read, hits.locations, hits.found, volumes)

    async def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Put (ids, locations) batches, several messages in flight; see `RemoteDataset.load`.

        `batches` is iterated over on the event loop: it should not wait for anything.
        """
        return await self._store.run(self._programs.load(as_batches(batches)), writes=True)

    async def _lookup(self, ids: NDArray[np.void], *, mask: bool = False) -> Hits:
        return await self._store.run(self._programs.lookup(ids, mask=mask))

    async def _pages(self, scan: Scan) -> AsyncIterator[ScanPage]:
        done = False
        while not done:
            page, done = await self._store.run(self._programs.scan_page(scan))
            scan = replace(scan, after=page.cursor)
            if len(page):
                yield page


class AsyncVolumes:
    """The server's table of volumes, awaited; see `kvmeta.Volumes`."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._programs = store.connection.programs

    @overload
    async def add(
        self,
        uri: str | Path,
        *,
        name: str | None = None,
        size_bytes: int | None = None,
        codec: str = "raw",
    ) -> Volume: ...

    @overload
    async def add(
        self, uri: Several, *, size_bytes: Sequence[int | None] | None = None, codec: str = "raw"
    ) -> builtins.list[Volume]: ...

    async def add(
        self,
        uri: str | Path | Several,
        *,
        name: str | None = None,
        size_bytes: Any = None,
        codec: str = "raw",
    ) -> Volume | builtins.list[Volume]:
        """Register `uri` and return its volume; several are registered at once."""
        wanted = new_volumes(uri, name=name, size_bytes=size_bytes, codec=codec)
        volumes = await self._store.run(self._programs.add_volumes(wanted), writes=True)
        return volumes[0] if isinstance(uri, (str, Path)) else volumes

    async def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        return (await self._store.run(self._programs.volumes([volume])))[0]

    async def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        return await self._store.run(self._programs.list_volumes())

    async def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` stand for another URI from now on; every entry in it follows."""
        return await self._store.run(self._programs.update_volume(volume, uri=uri), writes=True)

    async def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online", "offline" or "retired"."""
        return await self._store.run(self._programs.update_volume(volume, state=state), writes=True)


def _row(hits: Hits, row: int) -> Hits:
    part = slice(row, row + 1)
    return Hits(hits.found[part], hits.locations[part], hits.versions[part], hits.failed[part])
