"""The cluster as a store: the public contract, coordinated. What `answers.py` answers from on a node.

Calls come from lane threads; the coordination runs on the node's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import abstractmethod
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Outcome, Relocated, ScanPage, as_batches
from kvmeta.embedded import EmbeddedStore, locations_of, words_of
from kvmeta.engine import scan as scanning
from kvmeta.engine.distinct import Distinct
from kvmeta.engine.kernels import hashing
from kvmeta.engine.kernels import merge as merge_kernels
from kvmeta.engine.kernels.layout import HIGH, VERSION, WORD3
from kvmeta.errors import DeadlineError, KvmetaError, OutcomeUnknownError, UnavailableError
from kvmeta.ids import ID, as_ids
from kvmeta.location import as_locations
from kvmeta.protocol.codes import EXISTS, FOUND, TOOK_EFFECT, UNACKNOWLEDGED
from kvmeta.store import Dataset, Progress, Scan, Store, StoreStats, VerifyReport
from kvmeta.volumes import Volume, Volumes
from kvmeta_server.cluster.anti_entropy import merged
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.coordinator import ANSWERED, Coordinator
from kvmeta_server.cluster.replica import FAILED, Replica
from kvmeta_server.cluster.seams import Maps, PeerError, Peers

CALL_S = 30.0
"""How long coordination may take in all."""
PAGE_S = 1.0
"""After so long a scan's page ends, with what it has: a call is to end, however little there is."""
RUNS_AT_ONCE = 64
"""Runs of partitions read at once where they have few rows: each waits for the network most of the time."""
_RUN_ROWS = 1024
_SCAN_TRIES = 5

T = TypeVar("T")
Ids = NDArray[np.void]
Locations = NDArray[np.void]
Words = NDArray[np.uint64]


class Tables(Volumes):
    """The cluster's datasets and volumes; the node gives it."""

    @abstractmethod
    def local_name(self, dataset: str) -> str:
        """Return the name under which nodes hold a dataset; NotFoundError if there is none."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the datasets' names, sorted."""

    @abstractmethod
    def create(self, name: str, ttl_s: float | None, bottom_filter: bool) -> None:
        """Create a dataset on all nodes."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Drop a dataset on all nodes."""


class CoordinatedStore(Store):
    """The whole cluster, seen from a node; `flush`, `compact`, `verify`, `stats` are of this node alone."""

    def __init__(
        self,
        local: EmbeddedStore,
        replica: Replica,
        coordinator: Coordinator,
        maps: Maps,
        peers: Peers,
        tables: Tables,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.local = local
        self.engine = local.engine
        self.replica = replica
        self.coordinator = coordinator
        self.maps = maps
        self.peers = peers
        self.tables = tables
        self.volumes = tables
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, run on the node's loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(CALL_S)
        except TimeoutError as error:
            if isinstance(error, KvmetaError):
                raise
            future.cancel()
            raise DeadlineError(f"the other nodes did not answer within {CALL_S:g} s") from None

    def dataset(self, name: str = "default") -> CoordinatedDataset:
        """Return a dataset; NotFoundError if there is none of that name."""
        return CoordinatedDataset(self, name, self.tables.local_name(name))

    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> CoordinatedDataset:
        """Create a dataset on all nodes."""
        self.tables.create(name, ttl_s, bottom_filter)
        return self.dataset(name)

    def drop_dataset(self, name: str) -> None:
        """Remove a dataset on all nodes."""
        self.tables.drop(name)

    def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""
        return self.tables.names()

    def flush(self) -> None:
        """Write what is in this node's memory to runs."""
        self.local.flush()

    def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge this node's runs."""
        self.local.compact(discard_damaged=discard_damaged, progress=progress)

    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read this node's segments."""
        return self.local.verify(progress=progress)

    def stats(self) -> StoreStats:
        """Return this node's figures; the volumes are the cluster's."""
        return replace(self.local.stats(), volumes=len(self.tables.list()))

    def refresh(self) -> None:
        """Do nothing: the cluster always answers with its current state."""

    def close(self) -> None:
        """Do nothing: the node closes what it opened."""


class CoordinatedDataset(Dataset):
    """A dataset of the cluster."""

    def __init__(self, store: CoordinatedStore, name: str, local: str) -> None:
        self._store = store
        self._local = local
        self._keys = store.engine.keys
        self.name = name

    def lookup_at(self, ids: Ids, *, fast: bool) -> tuple[Hits, NDArray[np.uint8]]:
        """Look up ID[n] and return the protocol's states, too; `fast`: ask one replica first."""
        mixed = np.empty((len(ids), 2), np.uint64)
        hashing.mix(words_of(ids, 2), self._keys, mixed)
        if len(mixed) and (here := self._here(mixed, fast=fast)) is not None:
            hits, states = here
            missed = np.flatnonzero(states != FOUND)
            if not fast or not len(missed):
                return here
            confirmed, told = self._asked(np.ascontiguousarray(mixed[missed]), fast=False)
            hits.found[missed], hits.failed[missed] = confirmed.found, confirmed.failed
            hits.locations.view("V24")[missed] = confirmed.locations.view("V24")
            hits.versions[missed], states[missed] = confirmed.versions, told
            return here
        return self._asked(mixed, fast=fast)

    def _asked(self, mixed: Words, *, fast: bool) -> tuple[Hits, NDArray[np.uint8]]:
        """Look up mixed IDs at as many replicas as it takes."""
        got = self._store.run(self._store.coordinator.read(self._local, mixed, fast=fast))
        live = (got.states == ANSWERED) & ~self._store.coordinator.absent(self._local, got.rows)
        rows = got.rows
        rows[~live, VERSION:] = 0
        hits = Hits(live, locations_of(rows[:, WORD3:]), rows[:, VERSION].copy(), got.states != ANSWERED)
        return hits, np.where(live, np.uint8(FOUND), got.states)

    def _here(self, mixed: Words, *, fast: bool) -> tuple[Hits, NDArray[np.uint8]] | None:
        """Look up mixed IDs at this node's replica, where that is all that has to be asked; else None."""
        replica = self._store.replica
        cluster_map = replica.map
        partitions = cluster_map.partition_of(mixed[:, 0])
        enough = cluster_map.read_at(replica.slot) if fast else cluster_map.read_alone(replica.slot)
        if not enough[partitions].all():
            return None
        got = replica.tree(self._local).lookup(mixed)
        if replica.map is not cluster_map:  # it may be somebody else's by now
            return None
        failed = got.failed.view(np.bool_)
        hits = Hits(got.found.view(np.bool_), locations_of(got.locations), got.versions, failed)
        return hits, np.where(failed, np.uint8(FAILED), got.found)

    def _lookup(self, ids: Ids) -> Hits:
        return self.lookup_at(ids, fast=False)[0]

    def _put(self, ids: Ids, locations: Locations) -> None:
        self._write(
            Distinct.of(words_of(ids, 2), words_of(locations, 3), self._keys, last=True), delete=False
        )

    def _delete(self, ids: Ids) -> None:
        nothing = np.zeros((len(ids), 3), np.uint64)
        self._write(Distinct.of(words_of(ids, 2), nothing, self._keys, last=True), delete=True)

    def _write(self, distinct: Distinct, *, delete: bool) -> None:
        if not len(distinct.rows):
            return
        written = self._store.run(self._store.coordinator.write(self._local, distinct.rows, delete=delete))
        if not written.acknowledged.all():
            raise _unacknowledged(distinct.spread(~written.acknowledged), written.reason)

    def _insert(self, ids: Ids, locations: Locations) -> Inserted:
        distinct = Distinct.of(words_of(ids, 2), words_of(locations, 3), self._keys, last=False)
        outcomes, held, reason = self._decide("insert", distinct)
        unknown = outcomes == UNACKNOWLEDGED
        result = Inserted(
            distinct.spread(outcomes == TOOK_EFFECT) & distinct.winners(),
            locations_of(distinct.spread(held[:, WORD3:])),
            np.ascontiguousarray(distinct.spread(held[:, VERSION])),
            distinct.spread((outcomes != TOOK_EFFECT) & (outcomes != EXISTS)),
        )
        if unknown.any():
            raise _unacknowledged(distinct.spread(unknown), reason, result)
        return result

    def _relocate(self, ids: Ids, locations: Locations, versions: NDArray[np.uint64]) -> Relocated:
        distinct = Distinct.of(words_of(ids, 2), words_of(locations, 3), self._keys, last=False)
        distinct.rows[:, VERSION] = versions[distinct.kept]
        decided, _, reason = self._decide("relocate", distinct)
        outcomes = distinct.spread(decided).copy()
        unknown = outcomes == UNACKNOWLEDGED
        outcomes[~distinct.winners()] = Outcome.REPEATED
        result = Relocated(outcomes == Outcome.RELOCATED, outcomes)
        if unknown.any():
            raise _unacknowledged(unknown, reason, result)
        return result

    def _decide(self, operation: str, distinct: Distinct) -> tuple[NDArray[np.uint8], Words, str]:
        return self._store.run(self._store.coordinator.decide(self._local, operation, distinct.rows))

    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Put (ids, locations) batches and return the rows put."""
        rows = 0
        for ids, locations in as_batches(batches):
            column = as_ids(ids)
            self._put(column, as_locations(locations, len(column)))
            rows += len(column)
        return rows

    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan, as quorums of each partition's replicas have it."""
        return self._store.run(self._scan_page(scan))

    async def _scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        over = scanning.stretch(scan.shard, scan.sample)
        high, low, fresh = over.first, 0, True
        if scan.after is not None:
            cursor = int.from_bytes(scan.after[:8], "big"), int.from_bytes(scan.after[8:], "big")
            if cursor[0] >= over.first:
                (high, low), fresh = cursor, False
                if (
                    low == (1 << 64) - 1 and high < over.last
                ):  # seen whole, and one read may be all there is time for
                    high, low, fresh = high + 1, 0, True
        ids = np.empty((scan.page_rows, 2), np.uint64)
        locations, versions = np.empty((scan.page_rows, 3), np.uint64), np.empty(scan.page_rows, np.uint64)
        expired = self._store.coordinator.expired(self._local)
        written, examined, at_once = 0, 0, 1
        end = asyncio.get_running_loop().time() + PAGE_S
        while high <= over.last:
            wanted = scan.page_rows - written
            rows, until = await self._quorum_rows(high, over.last, wanted, at_once)
            at_once = min(RUNS_AT_ONCE, at_once * 2) if len(rows) < wanted // 2 else 1
            m, consumed = merge_kernels.emit(
                rows, np.uint64(high), np.uint64(low), fresh, np.uint64(scan.tag or 0), scan.tag is None,
                np.uint64(expired), self._keys, ids[written:], locations[written:], versions[written:],
            )  # fmt: skip
            written, examined = written + m, examined + len(rows)
            if consumed < len(rows):
                high, low = (int(half) for half in rows[consumed - 1, :2])
                break
            high, low, fresh = until, (1 << 64) - 1, False
            if until >= over.last or written == scan.page_rows or examined >= scanning.EXAMINED_ROWS_MAX:
                break
            if asyncio.get_running_loop().time() >= end:
                break
            high, low, fresh = until + 1, 0, True
        done = high > over.last or (high == over.last and low == (1 << 64) - 1)
        cursor_bytes = high.to_bytes(8, "big") + low.to_bytes(8, "big")
        page = ScanPage(
            ids[:written].reshape(-1).view(ID),
            locations_of(locations[:written]),
            versions[:written],
            cursor_bytes,
        )
        return page, done

    async def _quorum_rows(self, first: int, last: int, wanted: int, at_once: int) -> tuple[Words, int]:
        """Return the next rows as quorums have them, about `wanted`, of up to so many runs of partitions."""
        reason: Exception | None = None
        for turn in range(_SCAN_TRIES):
            cluster_map = self._store.maps.current
            rows_each = max(_RUN_ROWS, wanted // at_once)
            runs = itertools.islice(self._runs(cluster_map, first, last), at_once)
            try:
                parts = await asyncio.gather(*(self._run_rows(cluster_map, *run, rows_each) for run in runs))
            except (PeerError, UnavailableError) as error:
                reason, at_once = error, 1  # it may have been too much at once
                await asyncio.sleep(0.05 * 2**turn)
                await self._store.maps.newer_than(cluster_map.epoch, 0.05)
                continue
            whole = [until == stop for _, until, stop in parts]
            parts = parts[
                : whole.index(False) + 1 if False in whole else None
            ]  # behind a cut one there is a gap
            return np.concatenate([rows for rows, *_ in parts]), parts[-1][1]
        raise UnavailableError(f"dataset {self.name!r}: too few replicas answered a scan: {reason}")

    def _runs(self, cluster_map: ClusterMap, first: int, last: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield, in order, stretches whose partitions have one read quorum: first, last and whom to ask."""
        preference = self._store.coordinator.preference(cluster_map)
        while first <= last:
            partition = first >> cluster_map.shift
            stop = min(last, cluster_map.stretch(int(preference.runs[partition]))[1])
            need = int(cluster_map.read_quorum[partition])
            yield first, stop, preference.neighbours[partition, :need].tolist()
            first = stop + 1

    async def _run_rows(
        self, cluster_map: ClusterMap, first: int, stop: int, slots: list[int], page_rows: int
    ) -> tuple[Words, int, int]:
        """Return the rows of a stretch as all of `slots` together have them, up to where, and its end."""
        calls = (
            self._store.peers.rows(slot, self._local, cluster_map.epoch, first, stop, page_rows)
            for slot in slots
        )
        pages = await asyncio.gather(*calls)
        until = min(page.until for page in pages)
        rows = merged([page.rows[page.rows[:, HIGH] <= np.uint64(until)] for page in pages])
        return rows, until, stop

    def _volumes(self, numbers: list[int]) -> list[Volume]:
        return [self._store.volumes.get(number) for number in numbers]


def _unacknowledged(failed: NDArray[np.bool_], reason: str, partial: Any = None) -> OutcomeUnknownError:
    error = OutcomeUnknownError(
        f"{int(failed.sum())} of {len(failed)} IDs are not acknowledged and may or may not take effect: "
        f"{reason}"
    )
    error.failed = failed
    error.partial = partial
    return error
