"""The cluster's benchmark: `python -m bench.cluster --quick`, `--full` or `--tiny`.

    death      kill -9 of one of three nodes under load, and its return
    growth     three nodes, then five, then three again, under load
    routing    lookups for each CPU second: the routing SDK on three nodes against one server
    without    etcd stopped: what goes on and what waits

All nodes, etcd and the client are processes on this one machine and share its cores: what is judged is what
is lost, how long nothing went on, what moved, and ratios of CPU time.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import kvmeta
import kvmeta.operators
from bench import replicas, report
from bench.cluster_load import Load, Lookups
from bench.table import Answer, Series
from bench.timing import Progress
from bench.workers import Worker
from kvmeta.client.routing import Route
from kvmeta.errors import KvmetaError, UnavailableError
from kvmeta_server.dev import DevCluster

COMPARE = "cluster.repair_interval_s=15"
"""Often, so that equality is reached within the benchmark."""
_SETTLE_S = 600.0


@dataclass(frozen=True)
class Sizes:
    """How much of everything one form of the benchmark takes."""

    rows: int
    """Entries of the growth part."""
    death_rows: int
    death_s: float
    """Seconds of load before the death, while the node is away, and after its return."""
    deaths: int
    routing_rows: int
    routing_batches: int
    routing_rounds: int
    without_s: float
    partitions: int


FORMS = {
    "tiny": Sizes(
        rows=20_000, death_rows=5_000, death_s=1.0, deaths=1, routing_rows=20_000, routing_batches=2,
        routing_rounds=1, without_s=2.0, partitions=64,
    ),
    "quick": Sizes(
        rows=500_000, death_rows=200_000, death_s=6.0, deaths=2, routing_rows=1_000_000, routing_batches=40,
        routing_rounds=3, without_s=10.0, partitions=512,
    ),
    "full": Sizes(
        rows=5_000_000, death_rows=1_000_000, death_s=10.0, deaths=3, routing_rows=3_000_000,
        routing_batches=100, routing_rounds=7, without_s=60.0, partitions=4096,
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one form of the benchmark; return the exit status."""
    return report.run(
        "cluster", FORMS, _measure, arguments, sharing="; nodes, etcd and the client share them"
    )


def _measure(_: str, sizes: Sizes, data: Path) -> Iterator[Answer]:
    data.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="cluster-", dir=data))
    try:
        yield from _routing(sizes, scratch)
        yield from _death(sizes, scratch)
        yield from _without_etcd(sizes, scratch)
        yield from _growth(sizes, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cluster(scratch: Path, name: str, sizes: Sizes, nodes: int, *settings: str) -> DevCluster:
    own = (f"cluster.partitions={sizes.partitions}", *(settings or (COMPARE,)))
    cluster = DevCluster(scratch / name, nodes=nodes, settings=own)
    _settle(cluster, nodes)
    return cluster


# Death


def _death(sizes: Sizes, scratch: Path) -> Iterator[Answer]:
    lost, errors, gaps, back = [], [], [], []
    with (
        _cluster(scratch, "death", sizes, 3) as cluster,
        Worker(Load, cluster.target, sizes.death_rows, 1) as load,
        Progress("kill -9 under load", sizes.deaths) as progress,
    ):
        load.call("fill")
        for turn in range(sizes.deaths):
            name = f"n{turn % 3 + 1}"
            load.call("start")
            time.sleep(sizes.death_s)
            cluster.nodes[name].stop(signal.SIGKILL)
            time.sleep(sizes.death_s)
            cluster.restart(name)
            started = time.monotonic()
            time.sleep(sizes.death_s)
            seen = load.call("stop")
            end = time.monotonic() + _SETTLE_S
            while (differing := replicas.differing(cluster.target)) and time.monotonic() < end:
                time.sleep(0.5)
            back.append(time.monotonic() - started)
            wrong = load.call("check_all")
            lost.append(sum(seen["wrong"].values()) + sum(wrong.values()) + differing)
            errors.append(seen["error_count"])
            gaps.append(max(seen["gaps"].values()))
            for error in seen["errors"]:
                print(f"    seen: {error}", file=sys.stderr)
            progress(turn + 1)
    yield Answer(
        "death-lost", "kill -9 of one of 3 nodes: acknowledged writes lost, false misses, unequal partitions",
        0, Series("wrong", "", tuple(lost)),
        beside=(
            Series("errors that the client saw", "", tuple(errors)),
            Series("after its return: digests equal after", "s", tuple(back)),
        ),
    )  # fmt: skip
    yield Answer(
        "death-gap", "kill -9: the longest wait for a read or a write to succeed", 2.0,
        Series("wait", "s", tuple(gaps)),
    )  # fmt: skip


# Growth


def _growth(sizes: Sizes, scratch: Path) -> Iterator[Answer]:
    with (
        _cluster(scratch, "growth", sizes, 3) as cluster,
        Worker(Load, cluster.target, sizes.rows, 2) as load,
        Progress(f"3 -> 5 -> 3 nodes, {sizes.rows:,} entries", 4) as progress,
    ):
        load.call("fill")
        load.call("start")
        ratios, spent = [], []
        for step, (name, nodes) in enumerate((("n4", 4), ("n5", 5), ("n4", 4), ("n5", 3))):
            before = replicas.route(cluster.target)
            started = time.monotonic()
            if step < 2:
                cluster.add()
            else:
                _patiently(lambda name=name: _drain(cluster, name))
            _settle(cluster, nodes)
            spent.append(time.monotonic() - started)
            ratios.append(
                _moved(before, replicas.route(cluster.target))
                / (before.owners.size / max(nodes, nodes + (step >= 2)))
            )
            if step >= 2:
                cluster.nodes.pop(name).stop()
            progress(step + 1)
        seen = load.call("stop")
        end = time.monotonic() + _SETTLE_S
        while (differing := replicas.differing(cluster.target)) and time.monotonic() < end:
            time.sleep(0.5)
        wrong = load.call("check_all")
        for error in seen["errors"]:
            print(f"    seen: {error}", file=sys.stderr)
    yield Answer(
        "growth-lost", f"3 -> 5 -> 3 nodes with {sizes.rows:,} entries under load: lost or resurrected", 0,
        Series("wrong", "", (sum(seen["wrong"].values()) + sum(wrong.values()),)),
        beside=(
            Series("written meanwhile", "entries", (seen["counts"]["write"],)),
            Series("read meanwhile", "entries", (seen["counts"]["read"],)),
            Series("a step took", "s", tuple(spent)),
            Series("the longest wait for a success", "s", (max(seen["gaps"].values()),)),
        ),
    )  # fmt: skip
    yield Answer(
        "growth-errors", "  errors that the client saw", 0, Series("errors", "", (seen["error_count"],))
    )
    yield Answer(
        "growth-digests",
        "  partitions whose replicas differ at the end",
        0,
        Series("differ", "", (differing,)),
    )
    yield Answer(
        "growth-movement", "  replicas moved in a step, against the least that must", 1.2,
        Series("moved", "x", (max(ratios),)), beside=(Series("each step", "x", tuple(ratios)),),
    )  # fmt: skip


def _drain(cluster: DevCluster, name: str) -> None:
    with kvmeta.operators.open(cluster.target) as operator:
        operator.drain(name)


def _patiently(work: Callable[[], None]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            return work()
        except KvmetaError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


# Routing


def _routing(sizes: Sizes, scratch: Path) -> Iterator[Answer]:
    """Lookups for each CPU second of client and servers together, in turn, round after round."""
    from bench.servers import Kvmeta

    rates: dict[str, list[float]] = {name: [] for name in ("single", "R=1", "R=3, fast", "R=3, quorum")}
    single_path = scratch / "single"
    with (
        Kvmeta(single_path) as single,
        _cluster(scratch, "one", sizes, 3, "cluster.replicas=1", "cluster.write_quorum=1") as one,
        _cluster(scratch, "three", sizes, 3, "cluster.replicas=3") as three,
        Worker(Lookups, single.target, sizes.routing_rows, 3, "quorum") as ask_single,
        Worker(Lookups, one.target, sizes.routing_rows, 3, "quorum") as ask_one,
        Worker(Lookups, three.target, sizes.routing_rows, 3, "fast") as ask_fast,
        Worker(Lookups, three.target, sizes.routing_rows, 3, "quorum") as ask_quorum,
    ):
        for each in (ask_single, ask_one, ask_quorum):
            each.call("fill")
        for target in (single.target, *_targets(one), *_targets(three)):
            with kvmeta.open(target) as store:
                store.compact()  # merges under way would count as lookups
        subjects = (
            ("single", ask_single, 16_384, [single.pid]),
            ("R=1", ask_one, 49_152, _pids(one)),
            ("R=3, fast", ask_fast, 49_152, _pids(three)),
            ("R=3, quorum", ask_quorum, 49_152, _pids(three)),
        )
        for _, worker, rows, _ in subjects:
            worker.call("ask", rows, 4)
        with Progress("lookups for each CPU second", sizes.routing_rounds) as progress:
            for turn in range(sizes.routing_rounds):
                for name, worker, rows, pids in subjects:
                    batches = max(1, sizes.routing_batches * 49_152 // rows)
                    before = _cpu_s(pids)
                    own, _ = worker.call("ask", rows, batches)
                    rates[name].append(rows * batches / (own + _cpu_s(pids) - before) / 1e6)
                progress(turn + 1)
    series = {
        name: Series(f"{name}: M lookups a CPU second", "M", tuple(each)) for name, each in rates.items()
    }
    for name, key, target in (
        ("R=1", "routing-one", 0.7),
        ("R=3, fast", "routing-fast", 0.7),
        ("R=3, quorum", "routing-quorum", None),
    ):
        shares = tuple(a / b for a, b in zip(rates[name], rates["single"], strict=True))
        yield Answer(
            key, f"3 nodes, {name}, batches of 49,152: lookups a CPU second, of a single server's at 16,384",
            target, Series("share", "x", shares), at_least=True, beside=(series[name], series["single"]),
        )  # fmt: skip


def _targets(cluster: DevCluster) -> list[str]:
    return [f"kvmeta://{node.address}" for node in cluster.nodes.values()]


def _pids(cluster: DevCluster) -> list[int]:
    return [node.process.pid for node in cluster.nodes.values()]


def _cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(each.user + each.system for each in times))


# Without etcd


def _without_etcd(sizes: Sizes, scratch: Path) -> Iterator[Answer]:
    told = 0
    with (
        _cluster(scratch, "without", sizes, 3) as cluster,
        Worker(Load, cluster.target, sizes.death_rows, 4) as load,
        kvmeta.operators.open(cluster.target) as operator,
        Progress(f"{sizes.without_s:g} s without etcd"),
    ):
        load.call("fill")
        load.call("start")
        cluster.etcd.send(signal.SIGSTOP)
        time.sleep(sizes.without_s)
        try:
            operator.drain("n1", force=True)
        except UnavailableError as error:
            told = int("etcd" in str(error))
        cluster.etcd.send(signal.SIGCONT)
        seen = load.call("stop")
        wrong = load.call("check_all")
        operator.rebalance()
    yield Answer(
        "without-etcd", f"etcd stopped for {sizes.without_s:g} s: errors and wrong answers", 0,
        Series("wrong", "", (seen["error_count"] + sum(seen["wrong"].values()) + sum(wrong.values()),)),
        beside=(
            Series("written meanwhile", "entries", (seen["counts"]["write"],)),
            Series("the longest wait for a success", "s", (max(seen["gaps"].values()),)),
        ),
    )  # fmt: skip
    yield Answer(
        "without-etcd-told", "  a drain meanwhile says that etcd does not answer", 1,
        Series("told", "", (told,)), at_least=True,
    )  # fmt: skip


# What the nodes say


def _settle(cluster: DevCluster, nodes: int) -> None:
    """Return when so many members are left and nothing moves."""
    end = time.monotonic() + _SETTLE_S
    while time.monotonic() < end:
        try:
            with kvmeta.operators.open(cluster.target) as operator:
                told = operator.status()
            if len(told.members) == nodes and not told.moving and not told.unavailable:
                return
        except KvmetaError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{nodes} nodes did not settle within {_SETTLE_S:g} s; logs below {cluster.directory}")


def _moved(before: Route, after: Route) -> int:
    held = (after.owners[:, :, None] == before.owners[:, None, :]).any(axis=2)
    return int((~held).sum())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes are stopped, too
    sys.exit(main())
