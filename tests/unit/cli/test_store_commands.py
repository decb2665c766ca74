"""The commands about a store as a whole: figures, verification, compaction, volumes; and usage."""

import json
import os
from types import SimpleNamespace

import pytest

from kvmeta.cli.main import kvmeta_command
from tests.unit.cli.standin import StandInDatasetStats

KEY = "d0/0.bin"
ABSENT = "d0/nowhere.bin"


def json_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- stat, verify, compact, volumes ----------------------------------------------------------------------


def test_stat_prints_whatever_figures_there_are(run, catalog):
    assert run("stat", "--store", catalog).stdout.splitlines() == [
        "datasets",
        "  name              default",
        "  stored versions   12,345",
        "  memtable_rows     0",
        "  quarantined_runs  0",
        "  memtable_bytes    5,242,880  (5.0 MiB)",
        "disk_bytes  3,221,225,472  (3.0 GiB)",
    ]
    (figures,) = json_of(run("stat", "--store", catalog, "--json"))
    assert (figures["disk_bytes"], figures["datasets"][0]["rows"]) == (3 << 30, 12_345)
    assert "read_only" not in figures


def test_verify_of_an_undamaged_store_exits_with_0(run, catalog):
    result = run("verify", "--store", catalog)
    assert (result.exit_code, result.stdout) == (0, "ok: 4,000 pages of 3 segments read, 0 damages\n")


def test_verify_of_a_damaged_store_lists_the_damage_and_exits_with_3(run, catalog, opener):
    damage = SimpleNamespace(
        path="r/7.seg", dataset="default", page=12, first=255, last=1 << 127, reason="checksum"
    )
    opener.stores[catalog].damages.append(damage)
    result = run("verify", "--store", catalog)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[2].split() == [
        "r/7.seg",
        "default",
        "12",
        "0" * 30 + "ff",
        "8" + "0" * 31,
        "checksum",
    ]
    result = run("verify", "--store", catalog, "--json")
    assert (result.exit_code, json_of(result)[0]["damages"][0]["page"]) == (3, 12)


def test_damage_outside_the_pages_is_listed_without_a_range(run, catalog, opener):
    damage = SimpleNamespace(
        path="r/7.seg", dataset="default", page=None, first=None, last=None, reason="footer"
    )
    opener.stores[catalog].damages.append(damage)
    line = run("verify", "--store", catalog, "--progress").stdout.splitlines()[2]
    assert line.split() == ["r/7.seg", "default", "-", "-", "-", "footer"]


def test_compact_changes_a_store_but_never_creates_one(run, catalog, opener):
    assert run("compact", "--store", catalog).stdout.startswith("compacted in ")
    assert opener.stores[catalog].compactions == [{}]
    assert run("compact", "--store", "absent").exit_code == 1
    assert "absent" not in opener.stores


def test_compact_reports_the_damaged_runs_it_left_and_exits_with_3(run, catalog, opener):
    (told,) = json_of(run("compact", "--store", catalog, "--json"))
    assert told["quarantined_runs"] == 0
    opener.stores[catalog].figures = StandInDatasetStats(quarantined_runs=2)
    result = run("compact", "--store", catalog)
    assert result.exit_code == 3
    assert result.stderr == "2 damaged runs were left as they are; see kvmeta verify\n"
    result = run("compact", "--store", catalog, "--json")
    assert (result.exit_code, json_of(result)[0]["quarantined_runs"]) == (3, 2)


def test_compact_discards_damaged_entries_only_after_confirmation(run, catalog, opener):
    line = ["compact", "--store", catalog, "--discard-damaged"]
    refused = run(*line, input="n\n")
    assert (refused.exit_code, refused.stdout, opener.stores[catalog].compactions) == (2, "", [])
    assert refused.stderr.endswith("kvmeta: not confirmed; nothing was done\n")
    assert run(*line, input="").exit_code == 130
    assert run(*line, input="y\n").exit_code == 0
    assert run(*line, "--yes").exit_code == 0
    assert opener.stores[catalog].compactions == [{"discard_damaged": True}] * 2


def test_verify_prints_how_many_entries_are_only_in_the_log(run, catalog, opener):
    opener.stores[catalog].segments = 0
    opener.stores[catalog].figures = StandInDatasetStats(memtable_rows=1_200)
    assert run("verify", "--store", catalog).stdout == (
        "ok: 0 pages of 0 segments read; 1,200 entries are in the log, which was checked when it was opened\n"
    )
    assert json_of(run("verify", "--store", catalog, "--json"))[0]["log_entries"] == 1_200


def test_volumes_are_listed_added_and_moved(run, catalog, opener):
    assert run("volumes", "add", "file:///new.tar", "--store", catalog).stdout == "3\n"
    assert run("volumes", "add", "file:///new.tar", "--store", catalog).stdout == "3\n"
    assert run("volumes", "move", "3", "file:///newer.tar", "--store", catalog, "--force").exit_code == 0
    line = ["volumes", "move", "file:///newer.tar", "file:///newest.tar", "--store", catalog]
    assert run(*line, "--force").exit_code == 0
    listed = json_of(run("volumes", "list", "--store", catalog, "--json"))
    assert [each["number"] for each in listed] == [1, 2, 3]
    assert listed[2]["uri"] == "file:///newest.tar"
    lines = run("volumes", "list", "--store", catalog).stdout.splitlines()
    assert lines[0].split() == ["NUMBER", "NAME", "STATE", "FILE", "SIZE", "CODEC", "URI"]
    assert lines[3].split() == ["3", "new.tar", "online", "missing", "-", "raw", "file:///newest.tar"]
    assert run("volumes", "move", "9", "file:///x", "--store", catalog, "--force").exit_code == 1


def test_volumes_whose_files_are_missing_are_marked(run, catalog, tmp_path):
    run("volumes", "add", "s3://bucket/x.tar", "--store", catalog)
    (tmp_path / "shards1" / "shard-000000.tar").unlink()
    listed = json_of(run("volumes", "list", "--store", catalog, "--json"))
    assert [each["exists"] for each in listed] == [True, False, None]
    lines = run("volumes", "list", "--store", catalog).stdout.splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["there", "missing", "-"]


def test_a_volume_is_moved_by_its_path_and_only_to_a_file_that_is_there(run, catalog, tmp_path):
    old, new = tmp_path / "shards0" / "shard-000000.tar", tmp_path / "elsewhere.tar"
    refused = run("volumes", "move", old, new, "--store", catalog)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"kvmeta: {new}: no such file on this machine; nothing was changed")
    old.rename(new)
    moved = run("volumes", "move", old, new, "--store", catalog)
    assert moved.stdout == f"volume 1 is now at {new.as_uri()}\n"


@pytest.mark.parametrize("form", ["path", "uri"])
def test_all_volumes_of_a_directory_are_moved_at_once(run, catalog, tmp_path, form):
    (tmp_path / "shards00").mkdir()
    run("volumes", "add", tmp_path / "shards00" / "other.tar", "--store", catalog)
    old, new = tmp_path / "shards0", tmp_path / "new disk"
    prefix = ["--prefix", *((old, new) if form == "path" else (old.as_uri() + "/", new.as_uri() + "/"))]
    assert run("volumes", "move", *prefix, "--store", catalog).exit_code == 1
    old.rename(new)
    assert run("volumes", "move", *prefix, "--store", catalog).stdout == "moved 1 volume\n"
    uris = [each["uri"] for each in json_of(run("volumes", "list", "--store", catalog, "--json"))]
    assert uris[0] == (new / "shard-000000.tar").as_uri()
    assert uris[2] == (tmp_path / "shards00" / "other.tar").as_uri()
    assert "no volume's URI starts with" in run("volumes", "move", *prefix, "--store", catalog).stderr


@pytest.mark.parametrize("words", [[], ["1"], ["1", "x", "--prefix", "a", "b"]])
def test_volumes_move_with_neither_or_both_kinds_is_wrong_usage(run, catalog, words):
    assert run("volumes", "move", *words, "--store", catalog).exit_code == 2


def test_a_volume_is_not_added_to_a_store_that_is_not_there(run, opener):
    assert run("volumes", "add", "x.tar", "--store", "mistyped").exit_code == 1
    assert opener.stores == {}


@pytest.mark.parametrize("line", [["compact"], ["volumes", "add", "x.tar"]])
def test_a_command_that_writes_opens_a_server_only_once(run, opener, line):
    assert run(*line, "--store", "kvmeta://host:7400").exit_code == 0
    assert opener.modes == ["a"]


def test_an_empty_store_path_is_wrong_usage(run, opener):
    result = run("index", ".", "--store", "")
    assert (result.exit_code, opener.stores) == (2, {})
    assert "the path is empty" in result.stderr


@pytest.mark.parametrize(
    "line",
    [
        ["get", KEY], ["lookup", "--ids", os.devnull], ["cat", KEY], ["scan"], ["stat"], ["verify"],
        ["volumes", "list"],
    ],
)  # fmt: skip
def test_commands_that_read_open_the_store_for_reading_only(run, catalog, opener, line):
    assert run(*line, "--store", catalog).exit_code == 0
    assert opener.modes == ["r"]


@pytest.mark.parametrize(("line", "probes"), [(["verify"], True), (["stat"], False), (["compact"], False)])
def test_only_verify_probes_a_directory_for_read_errors(run, catalog, opener, line, probes):
    opener.options.clear()
    assert run(*line, "--store", catalog).exit_code == 0
    assert [options is not None and options.probe for options in opener.options][-1] == probes


def test_the_store_may_come_from_the_environment(run, catalog):
    assert run("get", KEY, env={"KVMETA_STORE": catalog}).exit_code == 0
    missing = run("get", KEY)
    assert missing.exit_code == 2
    assert "--store" in missing.stderr


def test_every_command_explains_itself(run):
    for name in kvmeta_command.list_commands(None):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert f"kvmeta {name}" in result.stdout
