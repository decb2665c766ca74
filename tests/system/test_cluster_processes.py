"""A cluster of processes: `kvmeta dev`, `kvmeta cluster`, and the benchmark's tiny form."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import kvmeta
import kvmeta.aio
import kvmeta.operators
from bench import cluster as benchmark
from kvmeta_server.dev import DevCluster
from tests import patience

pytestmark = pytest.mark.system

IDS = kvmeta.ids_from_ints(np.arange(5000, dtype=np.uint64))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    with DevCluster(tmp_path_factory.mktemp("dev"), settings=["cluster.partitions=32"]) as cluster:
        with kvmeta.operators.open(cluster.target) as operator:
            while len(operator.status().members) < 3 or operator.status().moving:
                pass
        yield cluster


def run(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kvmeta", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


until = partial(patience.until, within_s=60.0, look_s=0.1)


def test_the_cluster_commands_report_the_state_of_the_cluster(three: DevCluster) -> None:
    told = run("cluster", "status", "--store", three.target)
    assert "write_quorum" in told
    for name in ("n1", "n2", "n3"):
        assert name in told
    status = json.loads(run("cluster", "status", "--store", three.target, "--json"))
    assert status["partitions"] == 32
    assert status["moving"] == 0
    assert status["etcd"] is True
    assert [member["owned"] for member in status["members"]] == [32, 32, 32]
    lines = run("cluster", "map", "--store", three.target, "--json").splitlines()
    assert len(lines) == 32
    assert sorted(json.loads(lines[0])["owners"]) == ["n1", "n2", "n3"]
    assert "n1, n2, n3" in run("cluster", "map", "--store", three.target)
    assert "0 partitions" in run("cluster", "moves", "--store", three.target)
    assert len(run("cluster", "nodes", "--store", three.target, "--json").splitlines()) == 3
    assert "compared 32 partitions," in run("cluster", "repair", "--store", three.target)
    assert "done" in run("cluster", "rebalance", "--store", three.target, "--wait")


def test_join_says_the_command_with_the_clusters_name(three: DevCluster) -> None:
    assert "--cluster NAME " in run("cluster", "join")
    assert "--cluster dev " in run("cluster", "join", "--store", three.target)
    told = json.loads(run("cluster", "join", "--store", three.target, "--json"))
    assert told["cluster"] == "dev"
    assert told["command"].startswith("kvmeta serve --data DIR ")
    assert json.loads(run("cluster", "join", "--json"))["cluster"] is None


def test_an_impossible_drain_prints_one_line_and_exits_with_2(three: DevCluster) -> None:
    told = run("cluster", "drain", "n2", "--store", three.target, status=2)
    assert "2 nodes for 3 replicas" in told
    assert len(told.splitlines()) == 1


def test_cluster_status_refuses_a_single_server(tmp_path: Path) -> None:
    from tests.serving import ServerProcess

    with ServerProcess(tmp_path / "data") as server:
        told = run("cluster", "status", "--store", server.target, status=2)
        assert "no node of a cluster" in told


def test_every_kind_of_client_sees_the_same_store(three: DevCluster) -> None:
    locations = np.zeros(len(IDS), kvmeta.LOCATION)
    locations["volume"], locations["offset"] = 1, np.arange(len(IDS))
    for options in (
        kvmeta.ClientOptions(),
        kvmeta.ClientOptions(consistency="fast", hedge=True),
        kvmeta.ClientOptions(hedge=True, lookup_rows=500),
    ):
        with kvmeta.open(three.target, options=options) as store:
            store.dataset().put(IDS, locations)
            assert (store.dataset().lookup(IDS).locations == locations).all()

    async def awaited() -> None:
        options = kvmeta.ClientOptions(hedge=True, lookup_rows=500)
        async with kvmeta.aio.open(three.target, options=options) as store:
            ds = await store.dataset()
            for _ in range(5):
                assert (await ds.lookup(IDS)).found.all()

    import asyncio

    asyncio.run(awaited())


def test_a_killed_node_catches_up_after_its_restart(three: DevCluster) -> None:
    with kvmeta.open(three.target) as store:
        ds = store.dataset()
        locations = np.zeros(len(IDS), kvmeta.LOCATION)
        locations["volume"] = 1
        three.nodes["n3"].stop(signal.SIGKILL)
        ds.put(IDS, locations)
        assert ds.lookup(IDS).found.all()
        three.restart("n3")
        with kvmeta.open(f"kvmeta://{three.nodes['n3'].address}") as direct:
            assert direct.dataset().lookup(IDS).found.all()


def test_a_hanging_node_delays_lookups_only_briefly(three: DevCluster) -> None:
    with kvmeta.open(three.target, options=kvmeta.ClientOptions(failover_s=1.0)) as store:
        ds = store.dataset()
        three.nodes["n2"].send(signal.SIGSTOP)
        try:
            assert ds.lookup(IDS).found.all()
            assert ds.lookup(IDS).found.all()
        finally:
            three.nodes["n2"].send(signal.SIGCONT)


@contextmanager
def dev(data: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Give `kvmeta dev` of two nodes, its target, and what it says on stderr until it is ready."""
    command = [sys.executable, "-m", "kvmeta", "dev", "--nodes", "2", "--port", "0", "--data", str(data)]
    command = ["env", "--default-signal=INT,HUP", *command]  # which shells ignore in background jobs
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(120, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            target = process.stdout.readline().strip()
            assert target.startswith("kvmeta://")
            said = [process.stderr.readline()]
            while not said[-1].startswith("one more node: "):
                assert said[-1], said
                said.append(process.stderr.readline())
            yield process, target, said
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            timer.cancel()


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a process has started, the first one first."""
    return [
        int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -9)],
    ids=["Ctrl-C", "its terminal is closed", "it is killed"],
)
def test_etcd_and_nodes_end_with_dev_on_every_signal(tmp_path: Path, number: int, status: int) -> None:
    with dev(tmp_path) as (process, target, _):
        with kvmeta.open(target, options=kvmeta.ClientOptions(connect_timeout_s=30)) as store:
            store.dataset().put(IDS[:10], np.zeros(10, kvmeta.LOCATION))
        started = children(process)
        assert len(started) == 3
        process.send_signal(number)
        assert process.wait(60) == status
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), "processes are left")
    for name in ("n1", "n2"):
        log = (tmp_path / f"{name}.log").read_text()
        assert "draining" in log
        assert "closed" in log or status  # killed, dev has nobody left who waits for them


def test_dev_prints_how_to_join_a_node_and_which_process_ended(tmp_path: Path) -> None:
    with dev(tmp_path) as (process, target, said):
        assert any(line.startswith("etcd at http://127.0.0.1:") for line in said)
        words = shlex.split(said[-1].removeprefix("one more node: "))
        assert words[:2] == ["kvmeta", "serve"]
        with (
            kvmeta.operators.open(target) as operator,
            subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.DEVNULL) as third,
        ):
            try:
                until(lambda: len(operator.status().members) == 3, "the third node")
                assert operator.status().members[2].name == "n3"
            finally:
                third.terminate()
        os.kill(children(process)[2], signal.SIGKILL)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("n2 ended with status -9; its log, ")


def test_zones_and_weights_are_kept_and_a_drain_can_be_taken_back(tmp_path: Path) -> None:
    """Three zones, two nodes in the third, of weights 1 and 2."""
    settings = ["cluster.partitions=32", "cluster.move_rows_s=2000"]
    with DevCluster(tmp_path, nodes=0, settings=settings) as cluster:
        for zone in ("a", "b", "c"):
            cluster.add(f"cluster.zone={zone}")
        command = [sys.executable, "-m", "kvmeta", *cluster.next_node(), "--zone", "c", "--weight", "2"]
        with (
            kvmeta.operators.open(cluster.target) as operator,
            subprocess.Popen(command, stderr=subprocess.DEVNULL) as fourth,
        ):

            def settled() -> dict[str, kvmeta.operators.Member]:
                until(lambda: len(operator.status().members) == 4 and not operator.status().moving, "moves")
                return {each.name: each for each in operator.status().members}

            try:
                members = settled()
                assert (members["n4"].zone, members["n4"].weight) == ("c", 2)
                assert [members[name].owned for name in ("n1", "n2")] == [32, 32]
                assert members["n4"].owned > 1.5 * members["n3"].owned
                assert all(("n3" in owners) != ("n4" in owners) for owners in operator.owners())
                run("cluster", "weight", "n4", "1", "--store", cluster.target, "--wait")
                members = settled()
                assert members["n4"].weight == 1
                assert abs(members["n4"].owned - 16) <= 1
                with kvmeta.open(cluster.target) as store:
                    ids = kvmeta.ids_from_ints(np.arange(50_000, dtype=np.uint64))
                    store.dataset().put(ids, np.zeros(len(ids), kvmeta.LOCATION))
                    operator.drain("n4")  # which takes seconds: so fast is what is copied
                    until(lambda: operator.status().members[3].state == "draining", "the drain")
                    assert "keeping n4: done" in run(
                        "cluster", "undrain", "n4", "--store", cluster.target, "--wait"
                    )
                    assert settled()["n4"].state == "active"
                    assert settled()["n4"].owned == members["n4"].owned
                    assert store.dataset().lookup(ids).found.all()
            finally:
                fourth.terminate()


def test_the_cluster_benchmark_measures_everything(tmp_path: Path) -> None:
    results = tmp_path / "cluster.json"
    assert benchmark.main(["--tiny", "--data", str(tmp_path / "data"), "--results", str(results)]) == 0
    answers = {
        each["key"]: each["measured"]["median"] for each in json.loads(results.read_text())["tiny"]["answers"]
    }
    for key in ("death-lost", "growth-lost", "growth-errors", "growth-digests", "without-etcd"):
        assert answers[key] == 0, key
    assert answers["without-etcd-told"] == 1
