"""How fast one client process puts durably over the network: against the targets and against Redis.

Both servers start empty and take fresh entries round after round, so flushes and merges come as they come:

    kvmeta     "threads": 8 threads, each `ds.put(batch)`
               "load": one thread, `ds.load(batches)`, one message a batch, up to 8 in flight
    redis      MSET with `appendfsync always`, from one thread and from 8

Before the other server's turn kvmeta may end the merge it is at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kvmeta
from bench import servers
from bench.systems.ours import settled
from bench.systems.redis import Redis, RedisClient
from bench.table import Answer, Series, ratio
from bench.timing import Progress, seconds
from bench.workers import Worker, together_s
from bench.workloads import Batch, Catalogue, Queries

THREADS = 8
BATCHES = ((4096, 0.6), (16_384, 0.8))
"""Rows of a batch and the target in M entries/s."""
REDIS_TIMES = 2

_WAYS = ("threads", "load")
_REDIS = ("redis, 1 thread", f"redis, {THREADS} threads")
_WARM_BATCHES = 16


class Putter:
    """The client: each call puts entries that nobody has put before."""

    def __init__(self, target: str, seed: int, redis_port: int) -> None:
        self._catalogue = Catalogue(seed)
        self._queries = Queries(self._catalogue, 1)
        self._store = kvmeta.open(target)
        self._dataset = self._store.dataset()
        self._next = 0
        if redis_port:
            self._redis = RedisClient(redis_port)

    def round(self, subject: str, batch_rows: int, rows: int) -> float:
        """Put about `rows` entries and return how many millions are durable a second."""
        count = max(1, rows // batch_rows)
        batches = self._fresh(count, batch_rows)
        if subject in _REDIS:
            threads = 1 if subject == _REDIS[0] else THREADS
            spent_s = together_s(lambda batch: self._redis.put(*batch), batches, threads)
            self._check(self._redis.lookup, batches[-1][0])
        elif subject == "threads":
            spent_s = together_s(lambda batch: self._dataset.put(*batch), batches, THREADS)
            self._check(self._dataset.lookup, batches[-1][0])
        else:
            self._dataset.load(batches[:_WARM_BATCHES])
            spent_s = seconds(lambda: self._dataset.load(batches))
            self._check(self._dataset.lookup, batches[-1][0])
        return count * batch_rows / spent_s / 1e6

    def settle(self) -> tuple[int, int]:
        """Wait until no merge has been under way for a moment; return runs and rows."""
        stats = settled(self._store)
        return stats.runs, stats.rows + stats.memtable_rows

    def _fresh(self, count: int, batch_rows: int) -> list[Any]:
        first, self._next = self._next, self._next + count * batch_rows
        return list(self._catalogue.batches(first, count * batch_rows, batch_rows))

    def _check(self, lookup: Any, ids: Any) -> None:
        """Look up the batch put last, which has the last entries drawn."""
        indices = np.arange(self._next - len(ids), self._next, dtype=np.uint64)
        hits = lookup(ids)
        self._queries.check(Batch(ids, indices, np.ones(len(ids), np.bool_)), hits.found, hits.locations)


def answers(scratch: Path, sizes: Any, seed: int, *, against_redis: bool) -> Iterator[Answer]:
    """Measure and yield the answers about durable puts; `scratch` is an empty directory."""
    counts = dict.fromkeys(_WAYS, sizes.put_rows)
    rates: dict[tuple[str, int], list[float]] = {}
    redis = None
    if against_redis:
        counts |= dict.fromkeys(_REDIS, sizes.redis_put_rows)
        redis = Redis(scratch / "redis-durable", "always")
    try:
        with (
            servers.Kvmeta(scratch / "store") as server,
            Worker(Putter, server.target, seed, 0 if redis is None else redis.port) as putter,
            Progress("durable puts", sizes.put_rounds) as progress,
        ):
            for done in range(sizes.put_rounds):
                for batch_rows, _ in BATCHES:
                    for subject, rows in counts.items():
                        rate = putter.call("round", subject, batch_rows, rows)
                        rates.setdefault((subject, batch_rows), []).append(rate)
                        runs, held = putter.call("settle")
                progress(done + 1)
    finally:
        if redis is not None:
            redis.stop()
    state = [
        Series("entries put in the end", "M", (held / 1e6,)),
        Series("runs in the end", "", (float(runs),)),
    ]
    for batch_rows, target in BATCHES:
        series = {name: Series(name, "M entries/s", tuple(rates[name, batch_rows])) for name in counts}
        ours, other = sorted((series[way] for way in _WAYS), key=lambda each: -each.median)
        size = f"batches of {batch_rows:,}"
        yield Answer(
            f"put-{batch_rows}", f"durable puts, {size} ({ours.name})", target, ours, at_least=True,
            beside=[other, *state],
        )  # fmt: skip
        if against_redis:
            theirs = max((series[name] for name in _REDIS), key=lambda each: each.median)
            yield Answer(
                f"redis-put-{batch_rows}", f"times as fast as Redis MSET, synced, {size} ({theirs.name})",
                REDIS_TIMES, ratio("times", ours, theirs), at_least=True,
                beside=[series[name] for name in _REDIS],
            )  # fmt: skip
