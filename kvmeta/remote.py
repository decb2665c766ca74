"""The remote store: the public contract over one server, for callers that block.

    RemoteDataset ── program (client/calls.py) ──> Connection.run ── gRPC, a few messages in flight ──> server

A store may be used by any number of threads. A fork waits for the calls of other threads (client/forks.py),
and the child makes a connection of its own. A pickled store connects anew where it is unpickled. So
workers of data loaders just use the store they are given.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Relocated, ScanPage, as_batches
from kvmeta.client import calls
from kvmeta.client.attempts import Attempts, Call
from kvmeta.client.calls import DatasetCalls, Program, StoreCalls
from kvmeta.client.forks import gate
from kvmeta.client.latencies import Latencies
from kvmeta.client.memory import keep_freed_memory
from kvmeta.client.options import ClientOptions, addresses_of
from kvmeta.client.routing import Router
from kvmeta.errors import InputError, KvmetaError, ReadOnlyError
from kvmeta.location import Location
from kvmeta.protocol.calls import ALL_METHODS
from kvmeta.store import Dataset, Progress, Scan, Store, StoreStats, VerifyReport, as_one_id
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import Volume, Volumes

T = TypeVar("T")
Ids = NDArray[np.void]
Locations = NDArray[np.void]


class Connection:
    """A connection to one server or a cluster's nodes, made when it is first used and anew after a fork."""

    def __init__(self, target: str, options: ClientOptions) -> None:
        self.target = target
        self.options = options
        self.router = Router(addresses_of(target))
        self._lock = threading.Lock()
        self._pid = 0
        self._closed = False
        self._channels: dict[str, grpc.Channel] = {}
        self._methods: dict[str, dict[str, Any]] = {}  # by address
        self._limits: pb.DescribeResponse | None = None
        self._latencies = Latencies()
        keep_freed_memory()

    def limits(self) -> pb.DescribeResponse:
        """Return what the server accepts; asked once."""
        if self._limits is None:
            timeout_s = min(self.options.connect_timeout_s, self.options.timeout_s)
            limits = self.run(calls.describe(), timeout_s)
            self.router.describe(limits.epoch, limits.seed)
            self._limits = limits
        return self._limits

    def run(self, program: Program[T], timeout_s: float | None = None) -> T:
        """Run a program to its end and return its result; one message may take `timeout_s`."""
        errors: list[KvmetaError | None] | None = None
        while True:
            try:
                yielded = next(program) if errors is None else program.send(errors)
            except StopIteration as end:
                result: T = end.value
                return result
            errors = self._perform(iter(yielded), timeout_s or self.options.timeout_s)

    def close(self) -> None:
        """Close the channel. Idempotent."""
        with gate.inside(), self._lock:  # in this order: then no fork finds the lock taken
            self._closed = True
            if self._pid == os.getpid():
                for channel in self._channels.values():
                    channel.close()

    def check_open(self) -> None:
        """Raise InputError where the store was closed."""
        if self._closed:
            raise InputError(f"the connection to {self.target} is closed")

    def _perform(self, yielded: Iterator[Call], timeout_s: float) -> list[KvmetaError | None]:
        """Send the calls, up to `in_flight` at once, until one fails; return an entry for each one sent."""
        self._connect()
        first, second = next(yielded, None), next(yielded, None)
        if first is None:
            return []
        hedged = self.options.hedge and first.method == "Lookup"
        if second is None and not hedged:  # a blocking call is quicker than one that another thread ends
            return [self._finish(first, self._attempts(first, timeout_s), None)]
        errors: list[KvmetaError | None] = []
        flying: deque[tuple[Call, Attempts, grpc.Future[Any] | None]] = deque()
        try:
            for call in chain((first,) if second is None else (first, second), yielded):
                if len(flying) == self.options.in_flight:
                    errors.append(self._finish(*flying.popleft()))
                    if errors[-1] is not None:
                        break
                attempts = self._attempts(call, timeout_s)
                flying.append((call, attempts, self._start(call, attempts)))
            while flying:
                errors.append(self._finish(*flying.popleft()))
        finally:
            for _, _, future in flying:  # an interrupt: nobody waits for these any more
                if future is not None:
                    with gate.inside():
                        future.cancel()
        return errors

    def _attempts(self, call: Call, timeout_s: float) -> Attempts:
        servers = self.router.ordered(call.to) if call.to else self.router.addresses()
        return Attempts(call, servers, timeout_s, failover_s=self.options.failover_s)

    def _start(self, call: Call, attempts: Attempts, server: str = "") -> grpc.Future[Any] | None:
        """Send a call; None where the channel is closed, which `_finish` will tell."""
        try:
            with gate.inside():
                method = self._method(server or attempts.server, call.method)
                future: grpc.Future[Any] = method.future(call.request, timeout=attempts.attempt_s())
                gate.follow(future, attempts.left_s())
            future.add_done_callback(attempts.ended)
            return future
        except ValueError:
            return None
        except BaseException:  # Ctrl-C, or a signal's handler: it may have kept gRPC from giving a lock back
            self._abandon()
            raise

    def _finish(self, call: Call, attempts: Attempts, future: grpc.Future[Any] | None) -> KvmetaError | None:
        """See a call through, attempt by attempt; return the error that ended it."""
        while True:
            try:
                if future is not None:
                    reply = self._hedged(call, attempts, future)
                else:
                    with gate.inside(attempts.left_s()):
                        method = self._method(attempts.server, call.method)
                        reply = method(call.request, timeout=attempts.attempt_s())
            except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as failed:
                server = attempts.server
                try:
                    pause_s = attempts.after(failed, closed=self._closed)
                except KvmetaError as error:
                    return error
                finally:
                    if attempts.missed:
                        self.router.missed(server)
                time.sleep(pause_s)
                future = None
                continue
            try:
                call.take(reply)
            except InputError as error:
                return attempts.malformed(error)
            return None

    def _hedged(self, call: Call, attempts: Attempts, future: grpc.Future[Any]) -> Any:
        """Return the reply; with `hedge`, the first of two where a lookup takes unusually long."""
        others = attempts.others
        if not (self.options.hedge and others and call.method == "Lookup"):
            return future.result()
        try:
            patience_s = attempts.sent + self._latencies.unusual_s() - time.monotonic()
            reply = future.result(timeout=max(0.0, patience_s))
        except grpc.FutureTimeoutError:
            return self._first_of(call, attempts, future, others[0])
        self._latencies.note(time.monotonic() - attempts.sent)
        return reply

    def _first_of(self, call: Call, attempts: Attempts, future: grpc.Future[Any], other: str) -> Any:
        sent = {id(future): attempts.sent}
        second = self._start(call, attempts, other)
        if second is None:
            return future.result()
        sent[id(second)] = time.monotonic()
        ended = threading.Semaphore(0)
        for each in (future, second):
            each.add_done_callback(lambda _: ended.release())
        ended.acquire()
        winner, loser = (future, second) if future.done() else (second, future)
        if winner.exception() is not None:  # the other may still answer
            winner, loser = loser, winner
        reply = winner.result()
        self._latencies.note(time.monotonic() - sent[id(winner)])
        with gate.inside():
            loser.cancel()
        return reply

    def _method(self, server: str, name: str) -> Any:
        methods = self._methods.get(server)
        if methods is None:
            methods = self._reach(server)
        return methods[name]

    def _connect(self) -> None:
        if self._pid != os.getpid() or self._closed:  # not of this process: no channel survives a fork
            with gate.inside(), self._lock:
                self.check_open()
                if self._pid != os.getpid():
                    gate.check_fork()
                    self._channels, self._methods = {}, {}
                    self._pid = os.getpid()  # last: other threads go by it

    def _abandon(self) -> None:
        """Leave the channel to itself; the next call makes another. To close it might wait for ever."""
        with gate.inside(), self._lock:
            self._channels, self._methods = {}, {}
            self._pid = 0

    def _reach(self, server: str) -> dict[str, Any]:
        """Make the channel to a server. The caller is inside the gate."""
        with self._lock:
            if self._closed:
                raise ValueError("closed")
            if server not in self._methods:
                channel = grpc.insecure_channel(server, self.options.channel_arguments())
                self._channels[server] = channel
                self._methods[server] = {  # bytes both ways
                    name: channel.unary_unary(method.path, None, None) for name, method in ALL_METHODS.items()
                }
            return self._methods[server]


class RemoteStore(Store):
    """A store behind a server. mode "r" refuses writes here, whatever the server would say."""

    def __init__(self, target: str, mode: str = "a", options: ClientOptions | None = None) -> None:
        if mode not in ("a", "r"):
            raise InputError(f'mode: expected "a" or "r" for a server, got {mode!r}')
        self.mode = mode
        self.connection = Connection(target, options or ClientOptions())
        self.connection.limits()
        self.volumes = RemoteVolumes(self)

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str, str, ClientOptions]]:
        return RemoteStore, (self.connection.target, self.mode, self.connection.options)

    def __repr__(self) -> str:
        return f'<kvmeta store {self.connection.target}, mode "{self.mode}">'

    def run(self, program: Program[T], *, writes: bool = False) -> T:
        """Run a program over the connection."""
        if writes and self.mode == "r":
            self.connection.check_open()
            raise ReadOnlyError(f'{self.connection.target} was opened with mode="r"')
        return self.connection.run(program)

    def dataset(self, name: str = "default") -> RemoteDataset:
        """Return a dataset; NotFoundError if there is none of that name."""
        self.run(StoreCalls().dataset(name))
        return RemoteDataset(self, name)

    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> RemoteDataset:
        """Create a dataset; its options are fixed from now on."""
        self.run(StoreCalls().create_dataset(name, ttl_s, bottom_filter), writes=True)
        return RemoteDataset(self, name)

    def drop_dataset(self, name: str) -> None:
        """Remove a dataset and all its entries."""
        self.run(StoreCalls().drop_dataset(name), writes=True)

    def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""
        return self.run(StoreCalls().datasets())

    def flush(self) -> None:
        """Write what is in memory to the runs on disk; it was durable before."""
        self.run(StoreCalls().flush(), writes=True)

    def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge each dataset's runs into one: a job of the server, which goes on if this call ends."""
        self.run(
            StoreCalls().compact(discard_damaged, progress, self.connection.options.job_wait_s, self._one()),
            writes=True,
        )

    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every segment page and report what is not as it was written: a job of the server."""
        return self.run(StoreCalls().verify(progress, self.connection.options.job_wait_s, self._one()))

    def _one(self) -> tuple[str, ...]:
        """Return the one server to ask for a job: in a cluster each knows its own."""
        return self.connection.router.addresses()[:1]

    def stats(self) -> StoreStats:
        """Return figures about the store; `path` is the server's."""
        return self.run(StoreCalls().stats())

    def refresh(self) -> None:
        """Do nothing: a server always answers with its current state."""
        self.connection.check_open()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.connection.close()


class RemoteDataset(Dataset):
    """A dataset behind a server."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        self._store = store
        self.name = name
        connection = store.connection
        self._calls = DatasetCalls(
            name, connection.options, connection.limits().batch_rows_max, connection.router
        )

    def __reduce__(self) -> tuple[type[RemoteDataset], tuple[RemoteStore, str]]:
        return RemoteDataset, (self._store, self.name)

    def __repr__(self) -> str:
        return f"<kvmeta dataset {self.name!r} of {self._store.connection.target}>"

    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Put (ids, locations) batches, several messages in flight, and return the rows put.

        Unlike an embedded load it is not visible whole at its end: what was put before a failure stays. Later
        batches win over earlier ones.
        """
        return self._store.run(self._calls.load(as_batches(batches)), writes=True)

    def get(self, one_id: Any) -> Location | None:
        """Return one ID's location, or None. A str is a key."""
        return self._store.run(self._calls.get(as_one_id(one_id)))

    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows."""
        return self._store.run(self._calls.scan_page(scan))

    def _lookup(self, ids: Ids) -> Hits:
        return self._store.run(self._calls.lookup(ids))

    def _put(self, ids: Ids, locations: Locations) -> None:
        self._store.run(self._calls.put(ids, locations), writes=True)

    def _insert(self, ids: Ids, locations: Locations) -> Inserted:
        return self._store.run(self._calls.insert(ids, locations), writes=True)

    def _delete(self, ids: Ids) -> None:
        self._store.run(self._calls.delete(ids), writes=True)

    def _relocate(self, ids: Ids, locations: Locations, versions: NDArray[np.uint64]) -> Relocated:
        return self._store.run(self._calls.relocate(ids, locations, versions), writes=True)

    def _volumes(self, numbers: list[int]) -> list[Volume]:
        return self._store.run(StoreCalls().volumes(numbers))


class RemoteVolumes(Volumes):
    """The server's table of volumes."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store

    def add(self, uri: str | Path, *, name: str | None = None, size_bytes: int | None = None) -> Volume:
        """Register `uri` and return its volume; a URI known already returns the one it has."""
        return self._store.run(StoreCalls().add_volume(uri, name, size_bytes), writes=True)

    def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        return self._store.run(StoreCalls().volumes([volume]))[0]

    def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        return self._store.run(StoreCalls().list_volumes())

    def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` stand for another URI from now on; every entry in it follows."""
        return self._store.run(StoreCalls().update_volume(volume, uri=uri), writes=True)

    def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online" or "offline"."""
        return self._store.run(StoreCalls().update_volume(volume, state=state), writes=True)
