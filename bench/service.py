"""The service's benchmark: `python -m bench.service --quick`, `--full` or `--tiny`.

    remote_lookups.py   lookups from one client process, against an echo, against Redis
    single_gets.py      one get, against an echo
    crowd.py            64 callers
    flood.py            connections and calls that hang
    remote_writes.py    durable puts, against Redis

Servers and clients are processes of their own and share this machine's cores. A dump of the store's entries
for Redis is built once; Redis is left out, with the reason, where there is none. How a benchmark reports is
in report.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import crowd, engine, flood, remote_lookups, remote_writes, report, servers, single_gets
from bench.built import built
from bench.stores import Stores
from bench.systems.redis import LOAD_BATCH_ROWS, Redis, RedisSystem
from bench.table import Answer
from bench.timing import Progress
from bench.workloads import RECIPE


@dataclass(frozen=True)
class Sizes:
    """How much of everything one form of the benchmark takes."""

    rows: int
    """Of the store that is looked up in, and of Redis, where an entry takes about 130 bytes of memory."""
    lookup_rounds: int
    lookup_ids: int
    """Asked of kvmeta in a round, in each way."""
    echo_ids: int
    redis_ids: int
    single_rounds: int
    single_calls: int
    crowd_rounds: int
    crowd_s: float
    flood_rounds: int
    idle_connections: int
    slow_calls: int
    healthy_s: float
    put_rounds: int
    put_rows: int
    """Put to kvmeta in a round, in each way."""
    redis_put_rows: int


FORMS = {
    # Every path once, in seconds: what the unit tests run.
    "tiny": Sizes(
        rows=20_000, lookup_rounds=1, lookup_ids=131_072, echo_ids=131_072,
        redis_ids=32_768, single_rounds=1, single_calls=40, crowd_rounds=1, crowd_s=0.4, flood_rounds=1,
        idle_connections=40, slow_calls=12, healthy_s=0.3, put_rounds=1, put_rows=65_536,
        redis_put_rows=32_768,
    ),
    "quick": Sizes(
        rows=20_000_000, lookup_rounds=5, lookup_ids=2 << 20, echo_ids=2 << 20,
        redis_ids=1 << 17, single_rounds=5, single_calls=300, crowd_rounds=3, crowd_s=2.0, flood_rounds=3,
        idle_connections=1_000, slow_calls=300, healthy_s=1.5, put_rounds=3, put_rows=1 << 20,
        redis_put_rows=1 << 18,
    ),
    "full": Sizes(
        rows=60_000_000, lookup_rounds=9, lookup_ids=4 << 20, echo_ids=8 << 20,
        redis_ids=1 << 19, single_rounds=9, single_calls=2_000, crowd_rounds=7, crowd_s=3.0, flood_rounds=5,
        idle_connections=1_000, slow_calls=300, healthy_s=3.0, put_rounds=3, put_rows=4 << 20,
        redis_put_rows=1 << 20,
    ),
}  # fmt: skip

REDIS_QUESTIONS = ("redis-lookup-4096", "redis-lookup-16384", "redis-put-4096", "redis-put-16384")
QUESTIONS = (
    "lookup-4096", "lookup-16384", "echo-lookup-4096", "echo-lookup-16384", "single", "crowd",
    "flood-memory", "flood-p99", "put-4096", "put-16384", *REDIS_QUESTIONS,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form of the benchmark; return the exit status."""
    missing = RedisSystem().missing()
    return report.run(
        "service",
        FORMS,
        partial(_measure, against_redis=not missing),
        arguments,
        sharing="; servers and clients share the cores",
        left_out=f"{', '.join(REDIS_QUESTIONS)}: {missing}" if missing else "",
    )


def _measure(_: str, sizes: Sizes, data: Path, *, against_redis: bool) -> Iterator[Answer]:
    # The big store is the engine's, of another size.
    stores = Stores(data, replace(engine.FORMS["quick"], rows=sizes.rows))
    big, seed = stores.big(), stores.catalogue.seed
    scratch = stores.scratch()
    dump = _redis_dump(stores, sizes.rows) if against_redis else None
    os.sync()  # the writing back of a new store is no part of what follows
    try:
        with ExitStack() as stack:
            server = stack.enter_context(servers.Kvmeta(big))
            echo = stack.enter_context(servers.Echo())
            with ExitStack() as lookups:
                redis = None if dump is None else lookups.enter_context(Redis(dump))
                yield from remote_lookups.answers(server.target, echo.address, redis, sizes, seed)
            yield from single_gets.answers(server.target, echo.address, sizes, seed)
            yield from crowd.answers(server.target, sizes, seed)
        yield from flood.answers(big, sizes, seed)
        yield from remote_writes.answers(scratch, sizes, seed, against_redis=against_redis)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _redis_dump(stores: Stores, rows: int) -> Path:
    catalogue = stores.catalogue
    recipe = {"recipe": RECIPE, "seed": catalogue.seed, "rows": rows}

    def build(path: Path) -> None:
        with Progress(f"redis, {rows:,} rows, load", rows) as progress:
            RedisSystem().build(path, progress.counted(catalogue.batches(0, rows, LOAD_BATCH_ROWS)))

    return built(stores.directory / f"redis-{rows}", recipe, build)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped, too
    sys.exit(main())
