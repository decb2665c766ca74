"""Lookups whose pages are on the disk: a store made cold, and one larger than memory.

Every round starts with a process of its own and no page of the store in memory; fio reads the same files at
the same queue depth in the same round. Where fio is missing, nothing is compared.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import kvmeta
import kvmeta.embedded
from bench.device import Device, fio_missing, make_cold, random_reads
from bench.timing import Progress, quiet
from bench.workers import Worker
from bench.workloads import Catalogue, Queries

BATCHES = (4096, 16_384)


class ColdReader:
    """A process of its own that opens a store and asks."""

    def __init__(self, path: Path, rows: int) -> None:
        start = time.perf_counter()
        self._device = Device(path)
        self._store = kvmeta.open(path, mode="r")
        self._dataset = self._store.dataset()
        self._opened_s = time.perf_counter() - start
        self._queries = Queries(Catalogue(), rows)
        self._random = np.random.default_rng()

    def fill(self) -> None:
        """Read everything once: in the end memory holds as much of it as it can."""
        for _ in self._dataset.scan():
            pass

    def opened_s(self) -> float:
        """Return how long opening took."""
        return self._opened_s

    def ask(self, ids: int, batch_rows: int) -> dict[str, float]:
        """Ask so many IDs in batches; return IDs a second, device reads an ID and a second, in flight."""
        batches = [self._queries.batch(self._random, batch_rows) for _ in range(max(1, ids // batch_rows))]
        with quiet():
            start = self._device.counters()
            for batch in batches:
                hits = self._dataset.lookup(batch.ids)
            done = self._device.since(start)
        self._queries.check(batches[-1], hits.found, hits.locations)
        n = len(batches) * batch_rows
        return {
            "ids_s": n / done.seconds, "reads_id": done.reads / n, "bytes_id": done.read_bytes / n,
            "reads_s": done.reads / done.seconds, "depth": done.depth,
        }  # fmt: skip


def cold(path: Path, rows: int, sizes: Any) -> dict[str, Any]:
    """Ask a cold store, batches of 4,096 and 16,384, then fio, in turn; every round starts cold."""
    segments = sorted(path.rglob("*.seg"), key=lambda file: -file.stat().st_size)
    rounds: dict[str, list[dict[str, float]]] = {"4096": [], "16384": []}
    fio: dict[str, list[float]] = {"4096": [], "16384": []}
    opened: list[float] = []
    ids = min(sizes.cold_ids, max(BATCHES[0], rows // 64))  # a small store would be warm before the end
    missing = fio_missing()
    with Progress(f"cold lookups, {rows:,} rows", sizes.cold_rounds) as progress:
        for turn in range(sizes.cold_rounds):
            for batch_rows in BATCHES:
                make_cold(path)
                with Worker(ColdReader, path, rows) as reader:
                    opened.append(reader.call("opened_s"))
                    got = reader.call("ask", ids, batch_rows)
                rounds[str(batch_rows)].append(got)
                if not missing and got["depth"]:  # else nobody knows how deep fio should go
                    make_cold(path)
                    depth = max(1, round(got["depth"]))
                    fio[str(batch_rows)].append(random_reads(segments, depth, sizes.fio_s))
            progress(turn + 1)
    return {"rounds": rounds, "fio": fio, "opened_s": opened}


def mixed(path: Path, rows: int, sizes: Any) -> dict[str, Any]:
    """Ask a store of which memory holds as much as it can."""
    rounds = []
    with Worker(ColdReader, path, rows) as reader, Progress(f"mixed lookups, {rows:,} rows"):
        reader.call("fill")
        for _ in range(sizes.cold_rounds):
            rounds.append(reader.call("ask", sizes.cold_ids, BATCHES[0]))
    return {"rounds": rounds}
