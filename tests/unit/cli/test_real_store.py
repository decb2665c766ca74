"""The commands over a real store, in its directory and behind a server: files, damage, what each refuses."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import kvmeta
import kvmeta.remote
from kvmeta.cli.main import kvmeta_command
from kvmeta.embedded import EmbeddedStore
from tests.serving import served


@pytest.fixture(params=["path", "server"])
def store(request, tmp_path):
    """Give what --store names: the directory `catalog`, which is not there yet, or the server of one."""
    if request.param == "path":
        yield str(tmp_path / "catalog")
        return
    with EmbeddedStore(tmp_path / "catalog") as embedded, served(embedded) as target:
        yield target


@pytest.fixture
def run(store, monkeypatch):
    monkeypatch.delenv("KVMETA_DEBUG", raising=False)
    monkeypatch.setenv("KVMETA_STORE", store)
    return lambda *words, **named: CliRunner().invoke(kvmeta_command, [str(word) for word in words], **named)


@pytest.fixture
def indexed(run, tmp_path, photos):
    assert (
        run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--shard-bytes", "8k").exit_code == 0
    )
    assert run("index", tmp_path / "shards", "--tag", 3).exit_code == 0
    return photos


def test_packed_and_indexed_files_can_be_read_back(run, indexed):
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


def test_index_registers_shards_by_their_local_paths(run, indexed, tmp_path):
    listed = [json.loads(line) for line in run("volumes", "list", "--json").stdout.splitlines()]
    assert [each["uri"] for each in listed] == [
        shard.as_uri() for shard in sorted((tmp_path / "shards").iterdir())
    ]
    assert all(each["exists"] for each in listed)
    assert run("volumes", "add", tmp_path / "later.tar").stdout == f"{len(listed) + 1}\n"


def test_the_store_is_shown_compacted_and_verified(run, indexed, store):
    assert run("compact", "--progress").exit_code == 0
    (stats,) = map(json.loads, run("stat", "--json").stdout.splitlines())
    assert stats["datasets"][0]["rows"] == 20
    assert run("verify").stdout == "ok: 1 page of 1 segment read, 0 damages\n"
    assert run("verify", "--progress").exit_code == 0
    assert "default" in run("stat").stdout


def test_stat_of_a_server_prints_its_address_and_whether_it_accepts_writes(run, indexed, store):
    (stats,) = map(json.loads, run("stat", "--json").stdout.splitlines())
    if "://" in store:
        assert (stats["server"], stats["version"]) == (store.removeprefix("kvmeta://"), kvmeta.__version__)
        assert stats["read_only"] is False
    else:
        assert {"server", "version", "read_only"}.isdisjoint(stats)


def test_a_damaged_page_exits_with_code_3(run, indexed, tmp_path):
    run("compact")
    segment = next((tmp_path / "catalog").rglob("*.seg"))
    with segment.open("r+b") as file:  # in place: a server has the file mapped
        file.seek(4096 + 100)
        byte = file.read(1)[0]
        file.seek(4096 + 100)
        file.write(bytes([byte ^ 1]))
    result = run("verify", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["ok"], report["damages"][0]["path"]) == (False, str(segment))


def test_files_of_a_moved_volume_are_found_after_volumes_move(run, indexed, tmp_path):
    shards = sorted((tmp_path / "shards").iterdir())
    (tmp_path / "elsewhere").mkdir()
    for shard in shards:
        shard.rename(tmp_path / "elsewhere" / shard.name)
    assert run("cat", "photos/d0/0.bin").exit_code == 1
    for shard in shards:
        assert run("volumes", "move", shard, tmp_path / "elsewhere" / shard.name).exit_code == 0
    assert run("cat", *indexed).stdout_bytes == b"".join(indexed.values())


def test_a_missing_dataset_is_reported_in_the_words_of_the_command_line(run, indexed, tmp_path):
    refused = run("index", tmp_path / "shards", "--dataset", "other")
    assert refused.exit_code == 1
    assert "kvmeta index --create-dataset makes one" in refused.stderr
    assert run("index", tmp_path / "shards", "--dataset", "other", "--create-dataset").exit_code == 0


# --- what only a directory, or only a server does ----------------------------------------------------------


@pytest.mark.parametrize("store", ["path"], indirect=True)
def test_a_store_with_a_live_writer_can_be_read_but_not_indexed(run, indexed, tmp_path):
    with kvmeta.open(tmp_path / "catalog"):
        assert run("get", "photos/d0/0.bin").exit_code == 0
        refused = run("index", tmp_path / "shards")
        assert refused.exit_code == 4
        assert "mode=" not in refused.stderr


@pytest.mark.parametrize("store", ["path"], indirect=True)
def test_a_missing_store_is_reported_and_not_created(run, tmp_path):
    assert "mode=" not in run("stat").stderr
    assert run("stat").exit_code == 1
    assert run("compact").exit_code == 1
    assert not (tmp_path / "catalog").exists()


@pytest.mark.parametrize("store", ["server"], indirect=True)
def test_an_interrupted_command_says_that_the_server_goes_on(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for name in ("verify", "compact"):
        monkeypatch.setattr(kvmeta.remote.RemoteStore, name, interrupted)
        result = run(name)
        assert (result.exit_code, result.stderr) == (130, "kvmeta: interrupted; the server goes on with it\n")


@pytest.mark.slow
@pytest.mark.parametrize("store", ["server"], indirect=True)
def test_over_a_server_neither_the_engine_nor_its_packages_are_imported(run, indexed, store):
    key = next(iter(indexed))
    lines = [
        ["stat"], ["scan"], ["get", key], ["cat", key], ["lookup", "--ids", "/dev/null"], ["verify"],
        ["compact"], ["volumes", "list"], ["volumes", "add", "/x.tar"],
    ]  # fmt: skip
    code = (
        "import sys\n"
        "from kvmeta.cli.main import kvmeta_command\n"
        "for name in ('numba', 'rocksdict', 'rich'): sys.modules[name] = None\n"
        f"for words in {lines!r}:\n"
        f"    try: kvmeta_command([*words, '--store', {store!r}])\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
        "print([name for name in sys.modules if name.startswith(('kvmeta.engine', 'kvmeta.embedded'))])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == b"[]"


def test_a_missing_server_exits_with_4_and_a_wrong_url_with_2(monkeypatch):
    def run(target):
        return CliRunner().invoke(kvmeta_command, ["stat", "--store", target])

    monkeypatch.setattr("kvmeta.remote.ClientOptions", lambda: kvmeta.ClientOptions(connect_timeout_s=0.2))
    absent = run("kvmeta://127.0.0.1:1")
    assert (absent.exit_code, absent.stderr.count("\n")) == (4, 1)
    assert absent.stderr.startswith("kvmeta: 127.0.0.1:1, Describe: ")
    assert run("kvmeta://host:port:7400").exit_code == 2
    assert run("s3://bucket/catalog").exit_code == 2
