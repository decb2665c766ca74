"""The asyncio SDK: the contract of `kvmeta.Store` and `kvmeta.Dataset`, awaited.

    async with kvmeta.aio.open("kvmeta://localhost:7400") as store:
        ds = await store.dataset()
        hit = await ds.lookup(ids)
        one = await ds.get("train/0001.jpg")  # concurrent gets travel as one batch

Everything asked and answered is described in `client/calls.py`, which the blocking SDK shares; this file
sends it. A store belongs to the event loop that first uses it. gRPC's asyncio client does not survive a fork:
a process forked from one that used it is refused here; start such processes by spawn or forkserver.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from kvmeta import reader
from kvmeta.batch import Hits, Inserted, Relocated, ScanPage, as_batches, as_versions
from kvmeta.client import calls
from kvmeta.client.attempts import Attempts, Call
from kvmeta.client.calls import DatasetCalls, Program, StoreCalls
from kvmeta.client.forks import gate
from kvmeta.client.gathering import Gathering
from kvmeta.client.latencies import Latencies
from kvmeta.client.memory import keep_freed_memory
from kvmeta.client.options import SCHEME, ClientOptions, addresses_of
from kvmeta.client.routing import Router
from kvmeta.errors import InputError, KvmetaError, ReadOnlyError, UnsupportedError
from kvmeta.ids import as_ids
from kvmeta.location import Location, as_locations
from kvmeta.protocol.calls import ALL_METHODS
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
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import Volume

T = TypeVar("T")

_process = 0  # the one whose event loops gRPC serves: it has one poller, in a thread that a fork lacks


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


class AsyncConnection:
    """A connection to one server, or to the nodes of a cluster; made when it is first used."""

    def __init__(self, target: str, options: ClientOptions) -> None:
        self.target = target
        self.options = options
        self.router = Router(addresses_of(target))
        self._latencies = Latencies()
        self._closed = False
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._methods: dict[str, dict[str, Any]] = {}  # by address
        self._limits: pb.DescribeResponse | None = None
        keep_freed_memory()

    async def limits(self) -> pb.DescribeResponse:
        """Return what the server accepts; asked once."""
        if self._limits is None:
            timeout_s = min(self.options.connect_timeout_s, self.options.timeout_s)
            limits = await self.run(calls.describe(), timeout_s)
            self.router.describe(limits.epoch, limits.seed)
            self._limits = limits
        return self._limits

    async def run(self, program: Program[T], timeout_s: float | None = None) -> T:
        """Run a program to its end and return its result; one message may take `timeout_s`."""
        errors: list[KvmetaError | None] | None = None
        while True:
            try:
                yielded = next(program) if errors is None else program.send(errors)
            except StopIteration as end:
                result: T = end.value
                return result
            errors = await self._perform(iter(yielded), timeout_s or self.options.timeout_s)

    async def close(self) -> None:
        """Close the channel. Idempotent."""
        self._closed = True
        if _process == os.getpid():
            for channel in list(self._channels.values()):
                await channel.close(None)

    def check_open(self) -> None:
        """Raise InputError where the store was closed."""
        if self._closed:
            raise InputError(f"the connection to {self.target} is closed")

    async def _perform(self, yielded: Iterator[Call], timeout_s: float) -> list[KvmetaError | None]:
        """Send the calls, up to `in_flight` at once, until one fails; return an entry for each one sent."""
        self._connect()
        first, second = next(yielded, None), next(yielded, None)
        if first is None:
            return []
        if second is None:
            return [await self._see_through(first, timeout_s)]
        errors: list[KvmetaError | None] = []
        flying: deque[asyncio.Task[KvmetaError | None]] = deque()
        try:
            for call in chain((first, second), yielded):
                if len(flying) == self.options.in_flight:
                    errors.append(await flying[0])
                    flying.popleft()
                    if errors[-1] is not None:
                        break
                flying.append(asyncio.create_task(self._see_through(call, timeout_s)))
                await asyncio.sleep(0)  # let it be sent before the next is encoded
            while flying:
                errors.append(await flying[0])
                flying.popleft()
        finally:
            for task in flying:  # cancelled, or an error of the caller's own: nobody waits for these any more
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)
        return errors

    async def _see_through(self, call: Call, timeout_s: float) -> KvmetaError | None:
        """See a call through, attempt by attempt; return the error that ended it."""
        servers = self.router.ordered(call.to) if call.to else self.router.addresses()
        attempts = Attempts(call, servers, timeout_s, failover_s=self.options.failover_s)
        while True:
            try:
                reply = await self._ask(call, attempts)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._closed or (task is not None and task.cancelling()):
                    raise
                # Closing a channel cancels its calls, not those who wait for them.
                return attempts.cut_off(sent=True)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError) as failed:
                server = attempts.server
                try:
                    pause_s = attempts.after(failed, closed=self._closed)
                except KvmetaError as error:
                    return error
                finally:
                    if attempts.missed:
                        self.router.missed(server)
                await asyncio.sleep(pause_s)
                continue
            try:
                call.take(reply)
            except InputError as error:
                return attempts.malformed(error)
            return None

    async def _ask(self, call: Call, attempts: Attempts) -> bytes:
        """Return the reply; with `hedge`, the first of two where a lookup takes unusually long."""
        first = self._method(attempts.server, call.method)(call.request, timeout=attempts.attempt_s())
        others = attempts.others
        if not (self.options.hedge and others and call.method == "Lookup"):
            return await first  # type: ignore[no-any-return]
        clock = asyncio.get_running_loop().time
        sent = [clock()]
        tasks = [asyncio.ensure_future(_reply(first))]
        try:
            await asyncio.wait(tasks, timeout=self._latencies.unusual_s())
            if not tasks[0].done():
                second = self._method(others[0], call.method)(call.request, timeout=attempts.attempt_s())
                sent.append(clock())
                tasks.append(asyncio.ensure_future(_reply(second)))
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if all(task.exception() is not None for task in done):
                    await asyncio.wait(tasks)
            good = [task for task in tasks if task.done() and task.exception() is None]
            winner = (good or tasks)[0]
            reply = winner.result()
        finally:
            for task in tasks:
                task.cancel()
        self._latencies.note(clock() - sent[tasks.index(winner)])
        return reply

    def _method(self, server: str, name: str) -> Any:
        if self._closed:
            raise grpc.aio.UsageError("closed")
        if server not in self._methods:
            channel = grpc.aio.insecure_channel(server, self.options.channel_arguments())
            self._channels[server] = channel
            self._methods[server] = {  # bytes both ways
                each: channel.unary_unary(method.path, None, None) for each, method in ALL_METHODS.items()
            }
        return self._methods[server][name]

    def _connect(self) -> None:
        global _process
        self.check_open()
        gate.check_fork()
        if _process not in (0, os.getpid()):
            raise UnsupportedError(
                f"{self.target}: forked from a process that used kvmeta.aio, this one would hang in it. "
                'Start processes that use a server by "spawn" or "forkserver"'
            )
        _process = os.getpid()


async def _reply(call: Any) -> bytes:
    return await call  # type: ignore[no-any-return]


class AsyncStore:
    """A store behind a server, awaited; see `kvmeta.Store` for what each method does.

    Use it as an async context manager, or call `close`.
    """

    def __init__(self, target: str, mode: str = "a", options: ClientOptions | None = None) -> None:
        if mode not in ("a", "r"):
            raise InputError(f'mode: expected "a" or "r" for a server, got {mode!r}')
        self.mode = mode
        self.connection = AsyncConnection(target, options or ClientOptions())
        self.volumes = AsyncVolumes(self)

    def __repr__(self) -> str:
        return f'<kvmeta async store {self.connection.target}, mode "{self.mode}">'

    async def __aenter__(self) -> Self:
        await self.connection.limits()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, program: Program[T], *, writes: bool = False) -> T:
        """Run a program over the connection."""
        if writes and self.mode == "r":
            self.connection.check_open()
            raise ReadOnlyError(f'{self.connection.target} was opened with mode="r"')
        return await self.connection.run(program)

    async def dataset(self, name: str = "default") -> AsyncDataset:
        """Return a dataset; NotFoundError if there is none of that name."""
        await self.run(StoreCalls().dataset(name))
        return await self._dataset(name)

    async def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> AsyncDataset:
        """Create a dataset; its options are fixed from now on."""
        await self.run(StoreCalls().create_dataset(name, ttl_s, bottom_filter), writes=True)
        return await self._dataset(name)

    async def drop_dataset(self, name: str) -> None:
        """Remove a dataset and all its entries."""
        await self.run(StoreCalls().drop_dataset(name), writes=True)

    async def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""
        return await self.run(StoreCalls().datasets())

    async def flush(self) -> None:
        """Write what is in memory to the runs on disk; it was durable before."""
        await self.run(StoreCalls().flush(), writes=True)

    async def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge each dataset's runs into one: a job of the server, which goes on if this call ends."""
        await self.run(
            StoreCalls().compact(discard_damaged, progress, self.connection.options.job_wait_s, self._one()),
            writes=True,
        )

    async def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every segment page and report what is not as it was written: a job of the server."""
        return await self.run(StoreCalls().verify(progress, self.connection.options.job_wait_s, self._one()))

    def _one(self) -> tuple[str, ...]:
        """Return the one server to ask for a job: in a cluster each knows its own."""
        return self.connection.router.addresses()[:1]

    async def stats(self) -> StoreStats:
        """Return figures about the store; `path` is the server's."""
        return await self.run(StoreCalls().stats())

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self.connection.close()

    async def _dataset(self, name: str) -> AsyncDataset:
        limits = await self.connection.limits()
        return AsyncDataset(
            self, DatasetCalls(name, self.connection.options, limits.batch_rows_max, self.connection.router)
        )


class AsyncDataset:
    """A dataset behind a server, awaited; see `kvmeta.Dataset` for what each method does."""

    def __init__(self, store: AsyncStore, dataset_calls: DatasetCalls) -> None:
        self.name = dataset_calls.name
        self._store = store
        self._calls = dataset_calls
        rows_max = min(dataset_calls.options.lookup_rows, dataset_calls.rows_max)
        self._gets = Gathering(self._lookup, rows_max)

    def __repr__(self) -> str:
        return f"<kvmeta async dataset {self.name!r} of {self._store.connection.target}>"

    async def lookup(self, ids: Any, *, on_error: OnError = "raise") -> Hits:
        """Return the locations of `ids` as columns."""
        check_on_error(on_error)
        return answered(self.name, await self._lookup(as_ids(ids)), on_error)

    async def get(self, one_id: Any) -> Location | None:
        """Return one ID's location, or None. Gets that are under way at once travel as one batch."""
        hits, row = await self._gets.ask(as_one_id(one_id))
        if hits.failed[row]:
            answered(self.name, _row(hits, row), "raise")
        return Location(*hits.locations[row].tolist()) if hits.found[row] else None

    async def put(self, ids: Any, locations: Any) -> None:
        """Set the location of each ID; durable when it returns. Of duplicates the last wins."""
        column = as_ids(ids)
        await self._store.run(self._calls.put(column, as_locations(locations, len(column))), writes=True)

    async def insert(self, ids: Any, locations: Any) -> Inserted:
        """Set the location of each absent ID; of duplicates the first wins."""
        column = as_ids(ids)
        program = self._calls.insert(column, as_locations(locations, len(column)))
        return inserted(self.name, await self._store.run(program, writes=True))

    async def delete(self, ids: Any) -> None:
        """Remove each ID, held or not; durable when it returns."""
        await self._store.run(self._calls.delete(as_ids(ids)), writes=True)

    async def relocate(self, ids: Any, locations: Any, versions: Any) -> Relocated:
        """Set the location of each ID whose held version is still that of `versions`."""
        column = as_ids(ids)
        n = len(column)
        program = self._calls.relocate(column, as_locations(locations, n), as_versions(versions, n))
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
        numbers = reader.volume_numbers(hits.locations, hits.found)
        volumes = await self._store.run(StoreCalls().volumes(numbers))
        return await asyncio.to_thread(reader.read, hits.locations, hits.found, volumes)

    async def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Put (ids, locations) batches, several messages in flight; see `RemoteDataset.load`.

        `batches` is iterated over on the event loop: it should not wait for anything.
        """
        return await self._store.run(self._calls.load(as_batches(batches)), writes=True)

    async def _lookup(self, ids: NDArray[np.void]) -> Hits:
        return await self._store.run(self._calls.lookup(ids))

    async def _pages(self, scan: Scan) -> AsyncIterator[ScanPage]:
        done = False
        while not done:
            page, done = await self._store.run(self._calls.scan_page(scan))
            scan = replace(scan, after=page.cursor)
            if len(page):
                yield page


class AsyncVolumes:
    """The server's table of volumes, awaited; see `kvmeta.Volumes`."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store

    async def add(self, uri: str | Path, *, name: str | None = None, size_bytes: int | None = None) -> Volume:
        """Register `uri` and return its volume; a URI known already returns the one it has."""
        return await self._store.run(StoreCalls().add_volume(uri, name, size_bytes), writes=True)

    async def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        return (await self._store.run(StoreCalls().volumes([volume])))[0]

    async def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        return await self._store.run(StoreCalls().list_volumes())

    async def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` stand for another URI from now on; every entry in it follows."""
        return await self._store.run(StoreCalls().update_volume(volume, uri=uri), writes=True)

    async def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online" or "offline"."""
        return await self._store.run(StoreCalls().update_volume(volume, state=state), writes=True)


def _row(hits: Hits, row: int) -> Hits:
    part = slice(row, row + 1)
    return Hits(hits.found[part], hits.locations[part], hits.versions[part], hits.failed[part])
