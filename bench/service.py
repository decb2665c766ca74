"""The service's benchmark: `python -m bench.service --quick`, `--full` or `--tiny`.

    remote_lookups.py   lookups from one client process, against an echo, against Redis
    single_gets.py      one get, against an echo
    crowd.py            64 callers
    flood.py            connections and calls that hang
    remote_writes.py    durable puts, against Redis

Servers and clients are processes of their own and share this machine's cores. Prints a table with every
question, its target and what was measured, and writes the raw rounds to bench/results/service.json. The store
and a dump of the same entries for Redis are built once below bench/data; Redis is left out, with the reason,
where there is none. A missed target is named; with --full it is also the exit status. The tiny form judges
nothing: it shows that the benchmark still runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import crowd, engine, flood, remote_lookups, remote_writes, servers, single_gets, table
from bench.stores import Stores
from bench.table import Answer

_HERE = Path(__file__).resolve().parent


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
    given = _parser().parse_args(arguments)
    sizes = FORMS[given.form]
    # The big store is the engine's, of another size.
    stores = Stores(given.data, replace(engine.FORMS["quick"], rows=sizes.rows))
    start = time.monotonic()
    no_redis = servers.redis_missing()
    answers = _measure(stores, sizes, against_redis=not no_redis)
    if given.form == "tiny":
        answers = [replace(answer, judged=False) for answer in answers]
    print(f"kvmeta service, {given.form}: {engine.machine_line()}; servers and clients share the cores\n")
    print(table.table(answers))
    table.write(given.results, given.form, asdict(sizes), answers)
    missed = table.misses(answers)
    print()
    for answer in missed:
        print(f"short: {answer.question}: {answer.measured.text()}, target {answer.target_text}")
    if no_redis:
        print(f"left out: {', '.join(REDIS_QUESTIONS)}: {no_redis}")
    judged = sum(answer.judged for answer in answers)
    spent = time.monotonic() - start
    print(f"{judged - len(missed)} of {judged} targets met; {spent:.0f} s; rounds in {given.results}")
    return 1 if (missed or no_redis) and given.form == "full" else 0


def _measure(stores: Stores, sizes: Sizes, *, against_redis: bool) -> list[Answer]:
    big, seed = stores.big(), stores.catalogue.seed
    scratch = stores.scratch()
    dump = _redis_dump(stores, sizes.rows) if against_redis else None
    os.sync()  # the writing back of a new store is no part of what follows
    answers: list[Answer] = []
    try:
        with ExitStack() as stack:
            server = stack.enter_context(servers.Kvmeta(big))
            echo = stack.enter_context(servers.Echo())
            with ExitStack() as lookups:
                redis = None if dump is None else servers.Redis(dump)
                if redis is not None:
                    lookups.enter_context(redis)
                answers += remote_lookups.answers(server.target, echo.address, redis, sizes, seed)
            answers += single_gets.answers(server.target, echo.address, sizes, seed)
            answers += crowd.answers(server.target, sizes, seed)
        answers += flood.answers(big, sizes, seed)
        answers += remote_writes.answers(scratch, sizes, seed, against_redis=against_redis)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return answers


def _redis_dump(stores: Stores, rows: int) -> Path:
    from bench.redis_peer import dumped  # needs redis-py, which not everyone has

    return dumped(stores.directory, stores.catalogue, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.service", description="Measure the service.")
    form = parser.add_mutually_exclusive_group(required=True)
    for name, sizes in FORMS.items():
        form.add_argument(
            f"--{name}", dest="form", action="store_const", const=name, help=f"{sizes.rows:,} rows"
        )
    parser.add_argument("--data", type=Path, default=_HERE / "data", help="where stores are built and kept")
    parser.add_argument(
        "--results", type=Path, default=_HERE / "results" / "service.json", help="the JSON file to update"
    )
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped, too
    sys.exit(main())
