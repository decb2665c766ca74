"""Scanning a cluster: the hash order, a run of partitions at a time, as quorums of their replicas have it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import ScanPage
from kvmeta.embedded import locations_of
from kvmeta.engine import scan as scanning
from kvmeta.errors import UnavailableError
from kvmeta.ids import ID
from kvmeta.store import Scan
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.quorum_rows import quorum_page
from kvmeta_server.cluster.rows import Rows
from kvmeta_server.cluster.seams import Maps, PeerError, Peers

PAGE_S = 1.0
"""After so long a scan's page ends, with what it has: a call is to end, however little there is."""
RUNS_AT_ONCE = 64
"""Runs of partitions read at once where they have few rows: each waits for the network most of the time."""
_RUN_ROWS = 1024
_TRIES = 5


class Scanning:
    """The scans that one node coordinates."""

    def __init__(self, maps: Maps, peers: Peers, coordinator: Coordinator, keys: NDArray[np.uint64]) -> None:
        self._maps = maps
        self._peers = peers
        self._coordinator = coordinator
        self._keys = keys

    async def page(self, dataset: str, name: str, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows; `name` is the dataset's on nodes."""
        over = scanning.stretch(scan.shard, scan.sample)
        expired = self._coordinator.expired(name)
        walk = scanning.Walk(over, scan.after, scan.page_rows, scan.tag, self._keys, expired)
        clock, at_once = asyncio.get_running_loop().time, 1
        end = clock() + PAGE_S
        while walk.goes_on:
            wanted = walk.wanted
            rows, until = await self._rows(dataset, name, walk.high, over.last, wanted, at_once)
            at_once = min(RUNS_AT_ONCE, at_once * 2) if len(rows) < wanted // 2 else 1
            walk.take(rows, until)
            if clock() >= end:
                break
        got = walk.columns()
        ids = got.ids.reshape(-1).view(ID)
        return ScanPage(ids, locations_of(got.locations), got.versions, got.cursor), got.done

    async def _rows(
        self, dataset: str, name: str, first: int, last: int, wanted: int, at_once: int
    ) -> tuple[Rows, int]:
        """Return the next rows as quorums have them, about `wanted`, of up to so many runs of partitions."""
        reason: Exception | None = None
        for turn in range(_TRIES):
            cluster_map = self._maps.current
            rows_each = max(_RUN_ROWS, wanted // at_once)
            runs = list(itertools.islice(self._runs(cluster_map, first, last), at_once))
            try:
                parts = await asyncio.gather(
                    *(
                        quorum_page(self._peers, name, cluster_map.epoch, slots, start, stop, rows_each)
                        for start, stop, slots in runs
                    )
                )
            except (PeerError, UnavailableError) as error:
                reason, at_once = error, 1  # it may have been too much at once
                await asyncio.sleep(0.05 * 2**turn)
                await self._maps.newer_than(cluster_map.epoch, 0.05)
                continue
            whole = [until == stop for (_, until), (_, stop, _) in zip(parts, runs, strict=True)]
            if False in whole:  # behind a run that was cut there is a gap
                parts = parts[: whole.index(False) + 1]
            return np.concatenate([rows for rows, _ in parts]), parts[-1][1]
        raise UnavailableError(f"dataset {dataset!r}: too few replicas answered a scan: {reason}")

    def _runs(self, cluster_map: ClusterMap, first: int, last: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield, in order, stretches whose partitions have one read quorum: first, last and whom to ask."""
        preference = self._coordinator.preference(cluster_map)
        while first <= last:
            partition = first >> cluster_map.shift
            stop = min(last, cluster_map.stretch(int(preference.runs[partition]))[1])
            need = int(cluster_map.read_quorum[partition])
            yield first, stop, preference.neighbours[partition, :need].tolist()
            first = stop + 1
