"""Membership: what etcd says of the cluster, followed by every node, and changed by compare-and-swap alone.

    PREFIX/map          the cluster map (cluster_map.py)
    PREFIX/datasets     {"next": n, "datasets": {name: {"id", "ttl_s", "bottom_filter"}}}
    PREFIX/volumes/N    a volume; PREFIX/uris/URI its number, so that a URI has one
    PREFIX/next_volume  the next volume's number
    PREFIX/live/SLOT    there while the node's lease lasts
    PREFIX/driver       the slot of the node that drives moves, there while its lease lasts

Without etcd the node goes on with what it knows. Only changes need it, and they say so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import CorruptionError, InputError, KvmetaError, UnavailableError
from kvmeta_server.cluster.cluster_map import ClusterMap, decode
from kvmeta_server.cluster.lease import Lease
from kvmeta_server.cluster.seams import Authority, Changed, Compacted, Pace, Put, Value

LEASE_S = 5
"""How long a node counts as live after its last sign of life."""
_RETRY_S = 0.5
_CAS_TRIES = 20
NO_DATASETS = b'{"next": 1, "datasets": {}}'
_OWN_S = 1.0

Changes = Callable[[ClusterMap], ClusterMap]


def table_of(raw: bytes | None) -> dict[str, Any]:
    """Return the table of datasets that etcd holds: the next number, and options by name."""
    return dict(json.loads(NO_DATASETS if raw is None else raw))


_known_table = lru_cache(maxsize=4)(table_of)  # each call asks for it; who changes a table makes its own


def prefix_of(cluster: str) -> str:
    """Return what all keys of a cluster begin with."""
    return f"/kvmeta/{cluster}"


def local_name(name: str, number: int) -> str:
    """Return under which name nodes hold a dataset: one that is dropped and made anew is another."""
    return name if name == DEFAULT_DATASET else f"{name}@{number}"


def number_of(local: str) -> int:
    """Return the number of a dataset from its name on nodes."""
    return int(local.rpartition("@")[2])


class Membership:
    """The cluster as etcd has it. `adopt` makes the node work under a new map before others hear of it."""

    def __init__(
        self,
        authority: Authority,
        cluster: str,
        adopt: Callable[[ClusterMap], Awaitable[None]],
        fault: Callable[[Exception], None],
        pace: Pace,
    ) -> None:
        self._authority = authority
        self._prefix = prefix_of(cluster)
        self._adopt = adopt
        self._fault = fault
        self._pace = pace
        self._values: dict[str, Value] = {}
        self._map: ClusterMap | None = None
        self._map_revision = 0
        self._news = asyncio.Condition()
        self._revision = 0
        self._lease = Lease(authority, LEASE_S)
        self._slot = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[], None]] = []
        self.answers = False
        """Whether etcd answered lately."""

    # What is known

    @property
    def current(self) -> ClusterMap:
        """Return the newest map."""
        assert self._map is not None
        return self._map

    async def newer_than(self, epoch: int, timeout_s: float) -> None:
        """Return when there is a map newer than `epoch`, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self.current.epoch > epoch)

    def live(self) -> set[int]:
        """Return the slots of the nodes whose leases last."""
        start = f"{self._prefix}/live/"
        return {int(key.removeprefix(start)) for key in self._values if key.startswith(start)}

    def value(self, key: str) -> bytes | None:
        """Return the value of a key below the prefix."""
        held = self._values.get(f"{self._prefix}/{key}")
        return None if held is None else held.data

    def below(self, key: str) -> dict[str, bytes]:
        """Return the values of all keys below one."""
        start = f"{self._prefix}/{key}/"
        return {
            each.removeprefix(start): held.data
            for each, held in self._values.items()
            if each.startswith(start)
        }

    def dataset_table(self) -> dict[str, Any] | None:
        """Return the table of datasets: the next number, and options by name; None where none is known."""
        raw = self.value("datasets")
        return None if raw is None else _known_table(raw)

    def datasets(self) -> Mapping[str, dict[str, Any]]:
        """Return the datasets' options by name."""
        table = self.dataset_table()
        known: Mapping[str, dict[str, Any]] = {} if table is None else table["datasets"]
        return known

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change that is seen."""
        self._listeners.append(listener)

    def lease_left_s(self) -> float:
        """Return for how long this node's lease surely still lasts."""
        return self._lease.left_s()

    # Life

    def go_on_with(self, cluster_map: ClusterMap | None, datasets: bytes | None) -> None:
        """Start from a map and a table of datasets that were remembered."""
        if datasets is not None:
            key = f"{self._prefix}/datasets"
            self._values[key] = Value(key, datasets, 0)
        if cluster_map is not None and (self._map is None or cluster_map.epoch > self._map.epoch):
            self._map = cluster_map

    async def load(self) -> None:
        """Read everything; UnavailableError where etcd does not answer."""
        values, revision = await self._authority.below(f"{self._prefix}/")
        table = f"{self._prefix}/datasets"  # etcd answers: where it has no table, there are none
        self._values = {table: Value(table, NO_DATASETS, 0)}
        self._values |= {value.key: value for value in values}
        self.answers = True
        await self._look_at_map()
        self._revision = revision
        self._tell()
        async with self._news:
            self._news.notify_all()

    def start(self, slot: int) -> None:
        """Follow etcd, and keep this node's lease, from now on."""
        self._slot = slot
        self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._keep_lease())]

    async def stop(self) -> None:
        """End; give the lease up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(KvmetaError):
            await self._lease.end()
        await self._authority.close()

    # Changes

    async def change_map(self, change: Changes, *, founded: ClusterMap | None = None) -> ClusterMap:
        """Make a change of the map, again on what others made of it meanwhile; return the map with it.

        `founded` is the first map, for a cluster that has none. What `change` raises ends it.
        """

        def next_map(raw: bytes | None) -> bytes:
            if raw is None and founded is None:
                raise InputError(f"etcd at {self._authority.url} has no cluster at {self._prefix}")
            return (founded if raw is None else change(decode(raw))).encode()  # type: ignore[union-attr]

        return decode(await self.change("map", next_map))

    async def change(self, key: str, change: Callable[[bytes | None], bytes | None]) -> bytes:
        """Replace a key's value by what `change` makes of it, by compare-and-swap; return that."""
        full = f"{self._prefix}/{key}"
        for _ in range(_CAS_TRIES):
            held = await self._authority.get(full)
            data = change(None if held is None else held.data)
            if held is not None and data == held.data:
                return held.data
            revision = await self._authority.txn([Put(full, data)], held={full: held.revision if held else 0})
            if revision:
                await self._seen(revision)
                return data or b""
        raise UnavailableError(f"{full} changes all the time; try again")

    async def change_all(self, writes: dict[str, bytes | None], held: dict[str, int]) -> bool:
        """Make several writes at once if the keys of `held` have these revisions (0: absent)."""
        revision = await self._authority.txn(
            [Put(f"{self._prefix}/{key}", data) for key, data in writes.items()],
            held={f"{self._prefix}/{key}": revision for key, revision in held.items()},
        )
        await self._seen(revision)
        return revision != 0

    async def read(self, key: str) -> Value | None:
        """Read a key from etcd itself."""
        return await self._authority.get(f"{self._prefix}/{key}")

    async def is_driver(self) -> bool:
        """Return whether this node drives moves: it holds the key, or takes it where nobody does."""
        if self._lease.left_s() < 1 or not self.answers:
            return False
        held = self._values.get(f"{self._prefix}/driver")
        if held is not None:
            return held.data == str(self._slot).encode()
        key = f"{self._prefix}/driver"
        return bool(
            await self._authority.txn([Put(key, str(self._slot).encode(), self._lease.id)], held={key: 0})
        )

    async def _seen(self, revision: int) -> None:
        """Wait a moment for a change of our own to come back: what is asked here next shall know of it."""
        if not self._tasks:  # nobody follows yet
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_OWN_S), self._news:
                await self._news.wait_for(lambda: self._revision >= revision)

    async def _follow(self) -> None:
        while True:
            try:
                async for changes in self._authority.watch(f"{self._prefix}/", self._revision):
                    await self._take(changes)
            except Compacted:
                pass
            except Exception as error:  # noqa: BLE001 - a full disk, say: who follows no map must try again
                self._fault(error)
            try:
                await self.load()
            except UnavailableError:
                pass
            except Exception as error:  # noqa: BLE001
                self._fault(error)
            await asyncio.sleep(_RETRY_S)

    async def _take(self, changes: list[Changed]) -> None:
        for change in changes:
            if change.data is None:
                self._values.pop(change.key, None)
            else:
                self._values[change.key] = Value(change.key, change.data, change.revision)
        await self._look_at_map()
        # Seen is what this node works under: whoever waits for a revision asks for its map next.
        self._revision = max(self._revision, changes[-1].revision)
        self._tell()
        async with self._news:
            self._news.notify_all()

    async def _look_at_map(self) -> None:
        held = self._values.get(f"{self._prefix}/map")
        if held is None or held.revision == self._map_revision:
            return
        with suppress(CorruptionError):
            cluster_map = decode(held.data)
            if self._map is None or (
                cluster_map.epoch > self._map.epoch and cluster_map.cluster_id == self._map.cluster_id
            ):
                await self._adopt(cluster_map)
                self._map = cluster_map
            self._map_revision = held.revision

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def _keep_lease(self) -> None:
        told = 0  # the lease that our sign of life hangs on
        while True:
            try:
                await self._lease.renew()
                if self._lease.id != told:
                    await self._authority.txn(
                        [Put(f"{self._prefix}/live/{self._slot}", b"1", self._lease.id)], held={}
                    )
                    told = self._lease.id
                self.answers = True
            except UnavailableError:
                self.answers = False
            except Exception as error:  # noqa: BLE001
                self._fault(error)
            await asyncio.sleep(self._pace.renew_s)
