"""What a node is given by the world: gRPC, files, threads and etcd in production, others in a simulator.

    Peers       the replicas of all nodes              peers.py
    Wire        calls to addresses, as bytes           kvmeta/transport/grpc.py
    Authority   keys, leases and watches               etcd.py
    Disk        a few small files, replaced whole      disk.py
    Lane        threads that do what would block       lanes.py
    Maps        the cluster map as it is known         membership.py
    Hints       rows for who did not answer            hints.py

Time is the running event loop's (`loop.time`, `asyncio.sleep`), wall time the hybrid clock's. A world may put
something between a node and its peers or its hints (`World.peers`, `World.hints`): a simulator that looks on.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import UnavailableError
from kvmeta.protocol.methods import Method
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.rows import Applied, Bound, Fetched, Page

Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]
T = TypeVar("T")


class PeerError(UnavailableError):
    """A peer did not do what it was asked: it is gone, too slow, or refused. `begun`: it may have begun."""

    begun = True


class NotReachedError(PeerError):
    """A peer that was never reached: nothing has begun."""

    begun = False


class Peers(Protocol):
    """The replicas of all nodes by slot, one's own among them: what `Replica` answers. Raises PeerError."""

    async def apply(
        self, slot: int, dataset: str, epoch: int, rows: Rows, bound: Bound = Bound.PROMISED
    ) -> Applied:
        """Merge rows u8[n, 6] (distinct IDs) into what a node holds, durably."""

    async def fetch(
        self, slot: int, dataset: str, epoch: int, mixed: Words, *, versions_only: bool = False
    ) -> Fetched:
        """Return what a node holds of mixed IDs u8[n, 2], tombstones included."""

    async def rows(self, slot: int, dataset: str, epoch: int, first: int, last: int, page_rows: int) -> Page:
        """Return about `page_rows` rows that a node holds of a stretch of the hash order."""

    async def digests(
        self,
        slot: int,
        dataset: str,
        partitions: Iterable[int],
        cut_at: int,
        purged: Words,
        expired: int,
        *,
        promise: bool,
    ) -> tuple[Words, Words]:
        """Return a node's digests of partitions, and up to where their owners agreed."""

    async def agree(self, slot: int, dataset: str, partitions: Iterable[int], version: int) -> None:
        """Tell a node that all owners of partitions agreed up to `version`."""

    async def decide(
        self, slot: int, dataset: str, epoch: int, operation: str, rows: Rows, expired: int
    ) -> tuple[NDArray[np.uint8], Rows]:
        """Let a node decide inserts or relocates, as their first live owner.

        Entries below version `expired` have.
        """

    async def remembered(self, slot: int, pages_from: int) -> Any:
        """Ask a node what it remembers of map, tables and volumes (peer.RememberedResponse)."""

    async def tell(self, slot: int, tables: bytes) -> int:
        """Tell a node of the cluster's tables; return the serial of those that it knows then."""

    def likely(self, slot: int) -> bool:
        """Return whether a peer will probably answer."""

    def long_gone(self, slot: int) -> bool:
        """Return whether a peer has not answered for so long that nobody waits for it."""

    async def state(self, slot: int) -> Any:
        """Ask a node how it is (peer.StateResponse)."""


class Wire(Protocol):
    """Calls of PeerService."""

    async def call(self, address: str, method: Method, request: bytes, timeout_s: float) -> bytes:
        """Return the answer's bytes; `CallFailed` where there is none."""

    async def close(self) -> None:
        """Close all connections."""


class Value(NamedTuple):
    """A key's value and the revision of its last change."""

    key: str
    data: bytes
    revision: int


class Changed(NamedTuple):
    """A change that a watch saw; `data` is None where the key was deleted."""

    key: str
    data: bytes | None
    revision: int


class Put(NamedTuple):
    """A write: `data` None deletes. With `lease`, the key goes when the lease ends."""

    key: str
    data: bytes | None
    lease: int = 0


class Compacted(Exception):  # noqa: N818 - what happened to the revision
    """The revision that a watch was to start from is gone: list anew."""


class Authority(Protocol):
    """The one place where the cluster's state is decided. UnavailableError where it does not answer."""

    url: str

    async def get(self, key: str) -> Value | None:
        """Return a key's value, or None."""

    async def below(self, prefix: str) -> tuple[list[Value], int]:
        """Return all values below a prefix, and the revision that they are of."""

    async def txn(self, writes: Sequence[Put], *, held: dict[str, int]) -> int:
        """Make all writes if each key of `held` was last changed at that revision (0: is absent), or none.

        Returns the revision that they make, 0 where none was made.
        """

    def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Changed]]:
        """Yield all changes below a prefix after `revision`, as they come, for ever; or raise Compacted.

        No changes say that it is connected, or connected anew.
        """

    async def grant(self, ttl_s: int) -> int:
        """Return a new lease of `ttl_s` seconds."""

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease; return the seconds it lasts from when this was asked, 0 where it has ended."""

    async def revoke(self, lease: int) -> None:
        """End a lease now, and with it its keys."""

    async def close(self) -> None:
        """Close the connection."""


class Disk(Protocol):
    """Small files by name, of one directory. Errors are KvmetaErrors that say where."""

    def where(self, name: str) -> str:
        """Return what to call a file in messages."""

    def names(self, below: str) -> list[str]:
        """Return the names of the files in a directory, sorted."""

    def size(self, name: str) -> int:
        """Return a file's bytes; 0 where there is no such file."""

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes | None:
        """Return up to `size` bytes (all: -1) from byte `start` on; None where there is no such file."""

    def replace(self, name: str, raw: bytes) -> None:
        """Replace a file by `raw`, durably: after a crash it is the one or the other."""

    def append(self, name: str, raw: bytes) -> None:
        """Append `raw`, not durably: a crash may leave any part of it."""

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to `size` bytes."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


class Lane(Protocol):
    """Threads for what would keep the event loop waiting."""

    def run(self, work: Callable[[], T]) -> Awaitable[T]:
        """Return the future result of `work`."""

    def close(self, patience_s: float = 10.0) -> None:
        """Take nothing more."""


class Events(Protocol):
    """The log."""

    def info(self, event: str, **fields: Any) -> None:
        """Tell of something that is as it should be."""

    def warning(self, event: str, **fields: Any) -> None:
        """Tell of something that an operator may want to change."""

    def fault(self, where: str, error: BaseException) -> None:
        """Tell of a fault of the program."""


class Maps(Protocol):
    """The cluster map as this node knows it."""

    @property
    def current(self) -> ClusterMap:
        """Return the newest map."""

    async def newer_than(self, epoch: int, timeout_s: float) -> None:
        """Return when there is a map newer than `epoch`, or after the timeout."""


class Hint(NamedTuple):
    """Rows for a node, and where in its file they end; of a damaged record no rows, of no dataset."""

    dataset: str
    rows: Rows
    end: int


class Hints(Protocol):
    """Rows that wait for nodes which did not answer."""

    @property
    def dropped_rows(self) -> int:
        """Return how many rows there was no room for, or are damaged."""

    def add(self, slot: int, dataset: str, rows: Rows) -> None:
        """Keep rows u8[n, 6] for a node; drop them where there is no room or no disk."""

    def waiting(self) -> dict[int, int]:
        """Return the rows that wait, by node."""

    def read(self, slot: int, start: int = 0) -> Iterator[Hint]:
        """Yield a node's hints from byte `start` of its file on, oldest first."""

    def done(self, slot: int, end: int) -> bool:
        """Remove a node's hints up to `end` where nothing came behind; return whether that is so."""


def _as_they_are(given: T) -> T:
    return given


@dataclass(frozen=True)
class World:
    """All of it, for one node."""

    authority: Authority
    wire: Wire
    disk: Disk
    reads: Lane
    """For what peers ask to read."""
    writes: Lane
    background: Lane
    """For moves and mending."""
    control: Lane
    """For maps and datasets: a few threads that nothing else keeps busy."""
    log: Events
    random_bytes: Callable[[int], bytes] = os.urandom
    peers: Callable[[Peers], Peers] = _as_they_are
    """What stands between the node and its peers."""
    hints: Callable[[Hints], Hints] = _as_they_are
    """What stands between the node and its hints."""
    brings_reads: bool = True
    """Whether a read brings what replicas differ in to W of them."""


@dataclass(frozen=True)
class Pace:
    """How often a node does what it does by itself, in seconds."""

    probe_s: float = 0.5
    """Between two signs of life: who has answered nothing for half as long is asked for one."""
    step_s: float = 0.3
    """Between two looks at what moves."""
    hints_s: float = 1.0
    """Between two looks at whether hints can go."""
    renew_s: float = 1.0
    """Between two renewals of the lease."""
    long_s: float = 60.0
    """How long a peer may take for a page of rows or a comparison."""
    grace_s: float = 10.0
    """How far back a comparison's cut lies, so that writes under way are not caught by it."""
    mend_s: float = 5.0
    """Between two looks at what is damaged."""
    settled_s: float = 10.0
    """How old damage must be to be mended: twice what a call lasts that writes to a replica, so that whatever
    a damaged page holds is acknowledged by now, or never will be on this replica's word."""
