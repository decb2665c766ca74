"""How fast one client process looks up over the network: against the targets, an echo and Redis.

All subjects are asked in turn from one client process, round after round, each round with fresh random
batches:

    kvmeta     "threads": 8 threads, each `ds.lookup(batch)`, one message a batch
               "in one call": one thread, `ds.lookup` of 524,288 IDs, a message a batch, 16 in flight
    echo       the same two ways, the same messages built and parsed; "raw": bytes in, bytes out, 8 threads
    redis      MGET, one batch after the other, from one thread and from 4

kvmeta is judged by its better way, and against the echo asked in the same way. Against Redis one calling
thread is judged on each side: a call of kvmeta's has several messages in flight, redis-py waits for each
MGET. The ratio of threads to threads is told beside. Redis holds the same entries as the store and is asked
the same batches as kvmeta, but fewer of them, for it is slower.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np

import kvmeta
from bench.echo import LOOKUP
from bench.systems.redis import Redis, RedisClient
from bench.table import Answer, Series, ratio
from bench.timing import Progress
from bench.workers import Worker, together_s
from bench.workloads import Batch, Catalogue, Queries
from kvmeta.transport.grpc import CLIENT_ARGUMENTS
from kvmeta.v1 import kvmeta_pb2 as pb

THREADS = 8
CALL_ROWS = 1 << 19
IN_FLIGHT = 16
REDIS_THREADS = 4
BATCHES = ((4096, 3.0, 7, 0.4), (16_384, 4.5, 10, 0.2))
"""Rows of a batch, and the targets: M IDs/s, times Redis, share of the echo."""

_WAYS = ("threads", "in one call")
_ECHOES = ("echo, threads", "echo, in one call", "echo, raw")
_REDIS = ("redis, 1 thread", f"redis, {REDIS_THREADS} threads")
_WARM_ROWS = 16_384
_ECHO_BATCHES = 32


_ALONE = ("in one call", "echo, in one call", "redis, 1 thread")
"""The subjects with one calling thread. They are asked the same batches, and so are the others."""


class Warmer:
    """A client that reads a store into memory before others measure."""

    def __init__(self, target: str) -> None:
        self._dataset = kvmeta.open(target).dataset()

    def warm(self, rows: int, seed: int) -> None:
        """Look up every fourth entry, one call after the other, so that each page has been touched."""
        catalogue = Catalogue(seed)
        for first in range(0, rows, 4 * _WARM_ROWS):
            indices = np.arange(first, min(rows, first + 4 * _WARM_ROWS), 4, dtype=np.uint64)
            batch = Batch(catalogue.ids_of(indices), indices, np.ones(len(indices), np.bool_))
            hits = self._dataset.lookup(batch.ids)
            Queries(catalogue, rows).check(batch, hits.found, hits.locations)


def warm(target: str, rows: int, seed: int) -> None:
    """Read the store behind `target` into memory."""
    with Worker(Warmer, target) as warmer, Progress("warming the server"):
        warmer.call("warm", rows, seed)


class Asker:
    """The client: everything that is asked, connected."""

    def __init__(self, target: str, rows: int, seed: int, echo: str, redis_port: int) -> None:
        self._queries = Queries(Catalogue(seed), rows)
        self._dataset = kvmeta.open(target).dataset()
        self._in_one_call = {}
        for batch_rows, *_ in BATCHES:
            options = kvmeta.ClientOptions(lookup_rows=batch_rows, in_flight=IN_FLIGHT)
            self._in_one_call[batch_rows] = kvmeta.open(target, options=options).dataset()
        channel = grpc.insecure_channel(echo, CLIENT_ARGUMENTS)
        self._echo = channel.unary_unary(
            LOOKUP, pb.LookupRequest.SerializeToString, pb.LookupResponse.FromString
        )
        self._raw_echo = channel.unary_unary(LOOKUP)
        self._channel = channel
        if redis_port:
            self._redis = RedisClient(redis_port)
            self._redis.expect(rows)

    def redis_bytes(self) -> int:
        """Return the bytes that Redis uses."""
        return self._redis.used_bytes()

    def round(self, number: int, subject: str, batch_rows: int, ids: int) -> float:
        """Ask `ids` IDs of a subject and return how many millions it answers a second."""
        random = np.random.default_rng((11, number, batch_rows, subject in _ALONE))
        count = max(1, ids // batch_rows)
        fresh = min(count, _ECHO_BATCHES) if subject in _ECHOES else count  # an echo looks at none
        batches = [self._queries.batch(random, batch_rows) for _ in range(fresh)] * (count // fresh)
        if subject in _WAYS:
            spent_s = self._kvmeta_s(subject, batch_rows, batches)
        elif subject in _ECHOES:
            spent_s = self._echo_s(subject, batch_rows, batches)
        else:
            spent_s = self._redis_s(subject, batches)
        return len(batches) * batch_rows / spent_s / 1e6

    def _kvmeta_s(self, subject: str, batch_rows: int, batches: list[Batch]) -> float:
        if subject == "threads":
            dataset = self._dataset
            spent_s = together_s(lambda batch: dataset.lookup(batch.ids), batches, THREADS)
        else:
            dataset = self._in_one_call[batch_rows]
            spent_s = together_s(dataset.lookup, _joined(batches, batch_rows), 1)
        checked = batches[-2:]
        hits = dataset.lookup(np.concatenate([batch.ids for batch in checked]))
        for i, batch in enumerate(checked):
            part = slice(i * batch_rows, (i + 1) * batch_rows)
            self._queries.check(batch, hits.found[part], hits.locations[part])
        return spent_s

    def _echo_s(self, subject: str, batch_rows: int, batches: list[Batch]) -> float:
        if subject == "echo, raw":
            request = _request(batches[0].ids).SerializeToString()
            return together_s(lambda _: self._raw_echo(request, timeout=30), batches, THREADS)
        if subject == "echo, threads":
            return together_s(lambda batch: self._echo(_request(batch.ids), timeout=30), batches, THREADS)

        def in_one_call(ids: Any) -> None:
            flying: deque[Any] = deque()
            for start in range(0, len(ids), batch_rows):
                if len(flying) == IN_FLIGHT:
                    flying.popleft().result()
                flying.append(self._echo.future(_request(ids[start : start + batch_rows]), timeout=30))
            for future in flying:
                future.result()

        return together_s(in_one_call, _joined(batches, batch_rows), 1)

    def _redis_s(self, subject: str, batches: list[Batch]) -> float:
        threads = 1 if subject == _REDIS[0] else REDIS_THREADS
        spent_s = together_s(lambda batch: self._redis.lookup(batch.ids), batches, threads)
        hits = self._redis.lookup(batches[-1].ids)
        self._queries.check(batches[-1], hits.found, hits.locations)
        return spent_s


def _joined(batches: list[Batch], batch_rows: int) -> list[Any]:
    """Return the IDs of as many batches at a time as make a call."""
    count = CALL_ROWS // batch_rows
    starts = range(0, len(batches), count)
    return [np.concatenate([b.ids for b in batches[start : start + count]]) for start in starts]


def _request(ids: Any) -> pb.LookupRequest:
    return pb.LookupRequest(dataset="default", ids=pb.Packed(plain=ids.tobytes()))


def answers(target: str, echo: str, redis: Redis | None, sizes: Any, seed: int) -> Iterator[Answer]:
    """Measure and yield the answers about lookups from one client process."""
    counts = dict.fromkeys(_WAYS, sizes.lookup_ids) | dict.fromkeys(_ECHOES, sizes.echo_ids)
    if redis is not None:
        counts |= dict.fromkeys(_REDIS, sizes.redis_ids)
    rates: dict[tuple[str, int], list[float]] = {}
    redis_bytes = 0
    warm(target, sizes.rows, seed)
    with ExitStack() as stack:
        port = 0 if redis is None else redis.port
        asker = stack.enter_context(Worker(Asker, target, sizes.rows, seed, echo, port))
        if redis is not None:
            redis_bytes = asker.call("redis_bytes")
        with Progress("lookups", sizes.lookup_rounds) as progress:
            for done in range(sizes.lookup_rounds):
                for batch_rows, *_ in BATCHES:
                    for subject, ids in counts.items():
                        rate = asker.call("round", done, subject, batch_rows, ids)
                        rates.setdefault((subject, batch_rows), []).append(rate)
                progress(done + 1)
    for batch_rows, *targets in BATCHES:
        series = {name: Series(name, "M IDs/s", tuple(rates[name, batch_rows])) for name in counts}
        yield from _judged(series, batch_rows, targets, sizes, redis_bytes)


def _judged(
    series: dict[str, Series], batch_rows: int, targets: list[float], sizes: Any, redis_bytes: int
) -> Iterator[Answer]:
    rate, times, share = targets
    ours, other = sorted((series[way] for way in _WAYS), key=lambda each: -each.median)
    size = f"batches of {batch_rows:,}"
    yield Answer(
        f"lookup-{batch_rows}", f"lookups, {sizes.rows:,} rows, {size} ({ours.name})", rate,
        ours, at_least=True, beside=[other],
    )  # fmt: skip
    alike = series[f"echo, {ours.name}"]
    yield Answer(
        f"echo-lookup-{batch_rows}", f"share of a gRPC echo's rate, {size} ({ours.name})", share,
        ratio("share", ours, alike), at_least=True, beside=[series[name] for name in _ECHOES],
    )  # fmt: skip
    if redis_bytes:
        one, several = (series[name] for name in _REDIS)
        threads = ratio(
            f"{THREADS} threads against {REDIS_THREADS} threads of it", series["threads"], several
        )
        memory = Series(f"redis's memory, {sizes.rows:,} rows", "B/entry", (redis_bytes / sizes.rows,))
        yield Answer(
            f"redis-lookup-{batch_rows}", f"times as fast as Redis MGET, {size} (one calling thread each)",
            times, ratio("times", series["in one call"], one), at_least=True,
            beside=[one, several, threads, memory],
        )  # fmt: skip
