"""`kvmeta plan`: the arithmetic, the options, what is refused."""

from __future__ import annotations

import json
import math

import pytest

from kvmeta.cli.planning import Demand, Measured, measured, plan, read_quorum
from kvmeta.errors import InputError

OF = Measured(
    machine="a machine", date="2026-01-01", entries=300_000_000, disk_bytes_per_entry=32.0,
    memory_bytes_per_entry=0.25, process_bytes=100e6, warm_lookups_per_s=4e6, cold_lookups_per_s=50e3,
    puts_per_s=500e3, load_per_s=3e6, start_s=2.0, open_s_per_entry=5e-9, replay_s=0.5,
)  # fmt: skip
TB = 1e12


def test_a_small_catalogue_needs_as_many_nodes_as_it_has_replicas():
    assert plan(Demand(1000), OF).nodes == 3
    assert plan(Demand(1000, replicas=1), OF).nodes == 1


def test_small_disks_decide_the_number_of_nodes():
    needed = plan(Demand(20_000_000_000, disk_bytes=int(0.5 * TB)), OF)

    bytes_in_all = 20e9 * 3 * 32 * 9 / 8
    assert needed.nodes == math.ceil(bytes_in_all * 1.05 / (0.5 * TB * 0.8))
    assert needed.disk_bytes_per_node <= 0.5 * TB * 0.8
    assert needed.disk_bytes_per_node == pytest.approx(bytes_in_all * 1.05 / needed.nodes, rel=1e-6)


def test_puts_load_every_replica_and_lookups_load_a_read_quorum():
    assert plan(Demand(1000, puts_per_s=1e6), OF).nodes == 6
    assert plan(Demand(1000, lookups_per_s=1e6), OF).nodes == 40  # cold: no memory was promised
    assert [read_quorum(n) for n in (1, 2, 3, 5)] == [1, 1, 2, 3]


def test_memory_makes_lookups_warm_if_that_takes_fewer_nodes():
    files, needed = 3_000_000_000, {}
    for memory in (None, 16e9, 400e9):
        needed[memory] = plan(Demand(files, lookups_per_s=1e6, memory_bytes=memory and int(memory)), OF)

    assert (needed[None].nodes, needed[None].warm) == (40, False)
    assert needed[16e9].warm
    assert 3 < needed[16e9].nodes < 40
    assert needed[16e9].page_cache_bytes_per_node + 100e6 <= 16e9
    assert (needed[400e9].nodes, needed[400e9].warm) == (3, True)
    tiny = plan(Demand(files, lookups_per_s=1e5, memory_bytes=1 << 20), OF)
    assert (tiny.nodes, tiny.warm) == (4, False)


def test_restart_and_rebuild_grow_with_a_nodes_share():
    needed = plan(Demand(1_000_000_000), OF)

    assert needed.entries_per_node == math.ceil(1e9 * 1.05)
    assert needed.restart_s == pytest.approx(2.0 + 0.5 + 1.05e9 * 5e-9)
    assert needed.rebuild_s == pytest.approx(1.05e9 / 3e6)
    assert needed.memory_bytes_per_node == pytest.approx(100e6 + 3 * (56 << 20) + 1.05e9 * 0.25)


@pytest.mark.parametrize(
    "wrong",
    [{"files": 0}, {"files": 1, "replicas": 0}, {"files": 1, "lookups_per_s": -1.0},
     {"files": 1, "puts_per_s": math.nan}, {"files": 1, "disk_bytes": 0}],
)  # fmt: skip
def test_an_impossible_demand_is_refused(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        Demand(**wrong)


def test_the_command_shows_its_arithmetic(run):
    done = run("plan", "--files", "20e9", "--replicas", 3, "--lookups-per-s", "1e6", "--disk", "3.6TiB")

    assert done.exit_code == 0, done.stderr
    assert "20,000,000,000 files x 3 replicas" in done.stdout
    assert "2 replicas asked" in done.stdout
    for word in (
        "nodes, each with at least",
        "of disk",
        "of memory",
        "restart in",
        "rebuilt in",
        "measured with",
    ):
        assert word in done.stdout
    assert measured().date in done.stdout


def test_the_command_as_json_holds_plan_demand_and_figures(run):
    done = run("plan", "--files", "2_000_000_000", "--json")

    told = json.loads(done.stdout)
    assert told["demand"]["files"] == 2_000_000_000
    assert told["nodes"] >= 3
    assert told["measured"]["entries"] == measured().entries
    assert [step["name"] for step in told["steps"]][:2] == ["entries", "disk"]


@pytest.mark.parametrize("words", [("--files", "many"), ("--files", "1e9", "--disk", "large"), ()])
def test_arguments_that_plan_cannot_parse_are_wrong_usage(run, words):
    done = run("plan", *words)

    assert done.exit_code == 2
    assert done.stderr


@pytest.mark.parametrize("files", ["0", "inf", "nan"])
def test_an_impossible_number_is_refused_by_name(run, files):
    done = run("plan", "--files", files)

    assert done.exit_code == 2
    assert "files: expected at least 1" in done.stderr
