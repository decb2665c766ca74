"""The commands over a real store: from a directory of files to its bytes, through damage and a lock."""

import json

import pytest
from click.testing import CliRunner

import kvmeta
from kvmeta.cli.main import kvmeta_command


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.delenv("KVMETA_DEBUG", raising=False)
    monkeypatch.setenv("KVMETA_STORE", str(tmp_path / "catalog"))
    return lambda *words, **named: CliRunner().invoke(kvmeta_command, [str(word) for word in words], **named)


@pytest.fixture
def indexed(run, tmp_path, photos):
    assert (
        run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--shard-bytes", "8k").exit_code == 0
    )
    assert run("index", tmp_path / "shards", "--tag", 3).exit_code == 0
    return photos


def test_files_go_in_and_come_out(run, indexed):
    assert run("cat", *indexed).stdout_bytes == b"".join(indexed.values())
    keys = "".join(f"{key}\n" for key in indexed)
    looked_up = run("lookup", "--ids", "-", "--format", "key", "--json", input=keys)
    assert looked_up.stderr == "found 20 of 20\n"
    scanned = run("scan", "--tag", 3, "--json")
    answers = [json.loads(line) for line in looked_up.stdout.splitlines()]
    assert [answer.pop("key") for answer in answers] == list(indexed)
    entries = [json.loads(line) for line in scanned.stdout.splitlines()]
    assert sorted(entries, key=str) == sorted(answers, key=str)
    assert json.loads(run("get", "photos/d1/1.bin", "--json").stdout)["length"] == 101
    assert run("get", "photos").exit_code == 1


def test_the_store_is_shown_compacted_and_verified(run, indexed):
    assert run("compact").exit_code == 0
    (stats,) = map(json.loads, run("stat", "--json").stdout.splitlines())
    assert stats["datasets"][0]["rows"] == 20
    assert run("verify").stdout == "ok: 1 page of 1 segment read, 0 damages\n"
    assert "default" in run("stat").stdout


def test_a_damaged_page_is_code_3(run, indexed, tmp_path):
    run("compact")
    segment = next((tmp_path / "catalog").rglob("*.seg"))
    content = bytearray(segment.read_bytes())
    content[4096 + 100] ^= 1
    segment.write_bytes(content)
    result = run("verify", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["ok"] is False


def test_files_of_a_moved_volume_are_found_once_that_is_said(run, indexed, tmp_path):
    shards = sorted((tmp_path / "shards").iterdir())
    (tmp_path / "elsewhere").mkdir()
    for shard in shards:
        shard.rename(tmp_path / "elsewhere" / shard.name)
    assert run("cat", "photos/d0/0.bin").exit_code == 1
    for shard in shards:
        assert run("volumes", "move", shard, tmp_path / "elsewhere" / shard.name).exit_code == 0
    assert run("cat", *indexed).stdout_bytes == b"".join(indexed.values())


def test_a_store_that_is_being_written_can_be_read_but_not_indexed_into(run, indexed, tmp_path):
    with kvmeta.open(tmp_path / "catalog"):
        assert run("get", "photos/d0/0.bin").exit_code == 0
        refused = run("index", tmp_path / "shards")
        assert refused.exit_code == 4
        assert "mode=" not in refused.stderr
    refused = run("index", tmp_path / "shards", "--dataset", "other")
    assert "kvmeta index --create-dataset makes one" in refused.stderr


def test_a_missing_store_is_told_and_not_made(run, tmp_path):
    assert "mode=" not in run("stat").stderr
    assert run("stat").exit_code == 1
    assert run("compact").exit_code == 1
    assert not (tmp_path / "catalog").exists()
