"""How long one get takes over the network: through the SDK, through the bare Get call, and of an echo.

Three calls are made again and again from one thread of one client process, each time in another order, for a
server that was just asked is quicker than one whose memory another has driven from the caches:

    ds.get(id)       what users call; judged
    stub.Get         the generated stub, its message built and parsed
    the echo         a GetRequest in, a GetResponse out, built and parsed alike
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

import kvmeta
from bench.echo import GET
from bench.table import Answer, Series, ratio
from bench.timing import Progress, quiet
from bench.workers import Worker
from bench.workloads import Catalogue, Queries
from kvmeta.transport.grpc import CLIENT_ARGUMENTS
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import kvmeta_pb2_grpc as rpc

TARGET = 1.4
_CALLS = ("ds.get", "the bare Get call", "echo")
_TIMEOUT_S = 30


class Getter:
    """The client."""

    def __init__(self, target: str, rows: int, seed: int, echo: str) -> None:
        self._queries = Queries(Catalogue(seed), rows)
        self._random = np.random.default_rng(13)
        self._dataset = kvmeta.open(target).dataset()
        self._channel = grpc.insecure_channel(target.removeprefix("kvmeta://"), CLIENT_ARGUMENTS)
        self._stub = rpc.StoreServiceStub(self._channel)
        self._echo_channel = grpc.insecure_channel(echo, CLIENT_ARGUMENTS)
        self._echo = self._echo_channel.unary_unary(
            GET, pb.GetRequest.SerializeToString, pb.GetResponse.FromString
        )

    def round(self, calls: int) -> list[float]:
        """Make each call so many times and return their medians in microseconds."""
        batch = self._queries.batch(self._random, calls + calls // 4)
        ids = [batch.ids[i : i + 1] for i in range(len(batch.ids))]
        raw = batch.ids.tolist()
        asks = (
            lambda i: self._dataset.get(ids[i]),
            lambda i: self._stub.Get(_request(raw[i]), timeout=_TIMEOUT_S),
            lambda i: self._echo(_request(raw[i]), timeout=_TIMEOUT_S),
        )
        orders = self._random.permuted([range(len(asks))] * len(ids), axis=1).tolist()
        spent = np.empty((len(ids), len(asks)))
        replies: list[Any] = [None] * len(asks)
        checksums = np.empty((len(ids), 2), np.uint64)
        clock = time.perf_counter
        with quiet():
            for i, order in enumerate(orders):
                for which in order:
                    start = clock()
                    replies[which] = asks[which](i)
                    spent[i, which] = clock() - start
                location, reply, _ = replies
                checksums[i] = location.checksum if location else 0, reply.location.checksum
        if (checksums != self._queries.catalogue.checksums_of(batch.indices)[:, None]).any():
            raise AssertionError("a get was answered wrongly")
        return [float(each) for each in np.median(spent[calls // 4 :], axis=0) * 1e6]


def _request(one_id: bytes) -> pb.GetRequest:
    return pb.GetRequest(entry=pb.EntryName(id=one_id))


def answers(target: str, echo: str, sizes: Any, seed: int) -> Iterator[Answer]:
    """Measure and yield the answer about single gets."""
    rounds = []
    with (
        Worker(Getter, target, sizes.rows, seed, echo) as getter,
        Progress("single gets", sizes.single_rounds) as progress,
    ):
        for done in range(sizes.single_rounds):
            rounds.append(getter.call("round", sizes.single_calls))
            progress(done + 1)
    sdk, bare, plain = (
        Series(f"{name}, p50", "us", tuple(each[i] for each in rounds)) for i, name in enumerate(_CALLS)
    )
    yield Answer(
        "single", "a single get's p50 against an echo's", TARGET,
        ratio("ds.get against the echo", sdk, plain),
        beside=[sdk, bare, plain, ratio("the bare Get call against the echo", bare, plain)],
    )  # fmt: skip
