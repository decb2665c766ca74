"""How long the slowest calls of a crowd take: 64 callers, 4 processes of 16 threads, batches of 256.

The callers never pause, so this is the server at its limit: what is judged is how evenly it serves them. Each
process has one store for all its threads, as a data loader's worker has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvmeta
from bench.table import Answer, Series, ratio
from bench.timing import Progress, quiet
from bench.workers import Worker
from bench.workloads import Catalogue, Queries

PROCESSES, THREADS, BATCH_ROWS = 4, 16, 256
TARGET = 3
_BATCHES = 32  # of a thread, over and over
_START_S = 0.2  # until all processes have made their batches
_WARM_SHARE = 0.25


class Callers:
    """A client process: `threads` threads that call `lookup` as long as they are told."""

    def __init__(self, target: str, rows: int, seed: int, threads: int) -> None:
        self._queries = Queries(Catalogue(seed), rows)
        self._random = np.random.default_rng()  # each process asks for other IDs
        self._dataset = kvmeta.open(target).dataset()
        self._threads = threads

    def call(self, start: float, for_s: float) -> NDArray[np.float64]:
        """Call from monotonic time `start` on; return the seconds of each call but the first quarter's."""
        spent: list[float] = []
        errors: list[BaseException] = []
        shares = [
            [self._queries.batch(self._random, BATCH_ROWS) for _ in range(_BATCHES)]
            for _ in range(self._threads)
        ]
        warm_end, end = start + for_s * _WARM_SHARE, start + for_s

        def work(share: list[Any]) -> None:
            own, i, now = [], 0, time.monotonic()
            try:
                time.sleep(max(0.0, start - now))
                while now < end or not own:  # a busy machine may answer nothing in the time of a tiny form
                    began = time.monotonic()
                    self._dataset.lookup(share[i % _BATCHES].ids)
                    now = time.monotonic()
                    i += 1
                    if began >= warm_end:
                        own.append(now - began)
                hits = self._dataset.lookup(share[0].ids)
                self._queries.check(share[0], hits.found, hits.locations)
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)
            spent.extend(own)

        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        with quiet():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return np.array(spent)


def answers(target: str, sizes: Any, seed: int) -> Iterator[Answer]:
    """Measure and yield the answer about the crowd."""
    rounds = []
    with ExitStack() as stack:
        processes = [
            stack.enter_context(Worker(Callers, target, sizes.rows, seed, THREADS)) for _ in range(PROCESSES)
        ]
        with Progress("a crowd", sizes.crowd_rounds) as progress:
            for done in range(sizes.crowd_rounds):
                start = time.monotonic() + _START_S
                for process in processes:
                    process.begin("call", start, sizes.crowd_s)
                rounds.append(np.concatenate([process.result() for process in processes]))
                progress(done + 1)

    def share(percent: float) -> Series:
        figures = tuple(float(np.percentile(each, percent) * 1e3) for each in rounds)
        return Series(f"p{percent:g}", "ms", figures)

    timed_s = sizes.crowd_s * (1 - _WARM_SHARE)
    rate = tuple(len(each) * BATCH_ROWS / timed_s / 1e6 for each in rounds)
    who = f"{PROCESSES * THREADS} callers in {PROCESSES} processes"
    yield Answer(
        "crowd", f"p99 against p50, {who}, batches of {BATCH_ROWS}", TARGET,
        ratio("p99 against p50", share(99), share(50)),
        beside=[share(50), share(99), share(99.9), Series("all callers", "M IDs/s", rate)],
    )  # fmt: skip
