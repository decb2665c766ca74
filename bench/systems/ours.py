"""kvmeta itself, in process and behind its server, and the echo: the wire's limit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import kvmeta
from bench.echo import LOOKUP
from bench.servers import Echo, Kvmeta
from bench.systems.system import Batches, Client, Columns, Ids, Locations, Place, System
from kvmeta.transport.grpc import CLIENT_ARGUMENTS
from kvmeta.v1 import kvmeta_pb2 as pb

IN_FLIGHT = 16
_ECHO_S = 30
_SETTLED_S, _STEP_S = 0.2, 0.02


class KvmetaClient(Client):
    """A store; `address` is what `kvmeta.open` takes."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._store = kvmeta.open(address)
        self._dataset = self._store.dataset()
        self._pipelined: dict[int, kvmeta.Dataset] = {}

    def lookup(self, ids: Ids) -> Columns:
        """Return the locations of `ids`."""
        hits = self._dataset.lookup(ids)
        return Columns(hits.found, hits.locations)

    def lookups(self, batches: Sequence[Ids]) -> Iterator[Columns]:
        """Ask for all in one call: a message a batch, 16 in flight."""
        if not self._address.startswith("kvmeta://"):
            return super().lookups(batches)
        rows = len(batches[0])
        if rows not in self._pipelined:
            options = kvmeta.ClientOptions(lookup_rows=rows, in_flight=IN_FLIGHT)
            self._pipelined[rows] = kvmeta.open(self._address, options=options).dataset()
        hits = self._pipelined[rows].lookup(np.concatenate(batches))
        starts = range(0, len(hits.found), rows)
        return (Columns(hits.found[i : i + rows], hits.locations[i : i + rows]) for i in starts)

    def put(self, ids: Ids, locations: Locations) -> None:
        """Put a batch, synced when this returns."""
        self._dataset.put(ids, locations)

    def load(self, batches: Batches) -> None:
        """Load in bulk and compact."""
        self._dataset.load(batches)
        self._store.compact()

    def warm(self) -> bool:
        """Read everything; over the network asking is quicker than a scan."""
        if self._address.startswith("kvmeta://"):
            return False
        for _ in self._dataset.scan():
            pass
        return True

    def settle(self) -> None:
        """Wait for the merges."""
        settled(self._store)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


class Embedded(System):
    """kvmeta in the caller's process."""

    key, name = "kvmeta-embedded", "kvmeta, embedded"
    client = KvmetaClient
    threads = (2,)

    def version(self) -> str:
        """Return the version of kvmeta."""
        return f"kvmeta {kvmeta.__version__}"

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Name the directory: the client opens it."""
        yield Place(str(directory / "store"))


class Served(Embedded):
    """`kvmeta serve`."""

    key, name = "kvmeta", "kvmeta, over gRPC"
    threads = (8,)

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Start the server."""
        with Kvmeta(directory / "store") as server:
            yield Place(server.target, server.pid)


class EchoClient(Client):
    """Lookups whose answers have the right size and mean nothing; `address` is HOST:PORT."""

    answers = False

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, CLIENT_ARGUMENTS)
        self._call = self._channel.unary_unary(
            LOOKUP, pb.LookupRequest.SerializeToString, pb.LookupResponse.FromString
        )

    def lookup(self, ids: Ids) -> Columns:
        """Return as many columns as were asked for."""
        return _echoed(self._call(_request(ids), timeout=_ECHO_S), len(ids))

    def lookups(self, batches: Sequence[Ids]) -> Iterator[Columns]:
        """Have as many messages in flight as kvmeta."""
        flying: deque[Any] = deque()
        for ids in batches:
            if len(flying) == IN_FLIGHT:
                yield _echoed(flying.popleft().result(), len(ids))
            flying.append(self._call.future(_request(ids), timeout=_ECHO_S))
        for future in flying:
            yield _echoed(future.result(), len(batches[0]))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class EchoSystem(System):
    """A gRPC server that answers with as many bytes as kvmeta does, and looks at none."""

    key, name = "echo", "gRPC echo: the limit"
    note = "messages of the same size, built and parsed alike; nothing is looked up"
    client = EchoClient
    threads = (8,)
    writes = False
    durable = keeps = False

    def version(self) -> str:
        """Return the version of gRPC."""
        return f"grpcio {grpc.__version__}"

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Start the echo."""
        with Echo() as server:
            yield Place(server.address, server.pid)


def settled(store: kvmeta.Store) -> Any:
    """Return the figures of the first dataset once no merge has been under way for a moment."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < _SETTLED_S:
        figures = store.stats().datasets[0]
        if figures.merging:
            quiet_since = time.monotonic()
        time.sleep(_STEP_S)
    return figures


def _request(ids: Ids) -> pb.LookupRequest:
    return pb.LookupRequest(dataset="default", ids=pb.Packed(plain=ids.tobytes()))


def _echoed(reply: pb.LookupResponse, n: int) -> Columns:
    del reply
    return Columns(np.ones(n, np.bool_), None)
