"""What each command prints and does, as a script reads: the command line, then its output."""

import json
import sys

import pytest

from kvmeta.ids import as_ids, ids_to_hex
from kvmeta.sources import kinds

KEY = "d0/0.bin"
ABSENT = "d0/nowhere.bin"


def json_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- pack, index -----------------------------------------------------------------------------------------


def test_pack_then_index_then_cat_gives_the_bytes_back(run, tmp_path, photos):
    packed = run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--shard-bytes", "4KiB")
    assert (packed.exit_code, packed.stderr) == (0, "")
    assert packed.stdout.startswith("packed 20 files (2.1 KiB) into 5 shards")
    indexed = run("index", tmp_path / "shards", "--store", "new")
    assert (indexed.exit_code, indexed.stderr) == (0, "")
    assert indexed.stdout.startswith("indexed 20 files (2.1 KiB) in 5 tars")
    cat = run("cat", *photos, "--store", "new")
    assert cat.stdout_bytes == b"".join(photos.values())


def test_pack_and_index_report_as_json_objects(run, tmp_path, photos):
    (packed,) = json_of(run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--json"))
    assert (packed["files"], packed["shards"], packed["skipped"]) == (20, 1, 0)
    (indexed,) = json_of(run("index", tmp_path / "shards", "--store", "new", "--json"))
    assert (indexed["files"], indexed["batches"]) == (20, 1)


def test_index_takes_its_rule_tag_and_dataset(run, opener, tmp_path, photos):
    run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--name", "part")
    line = [
        "index",
        tmp_path / "shards",
        "--store",
        "new",
        "--dataset",
        "other",
        "--id",
        "path",
        "--tag",
        "9",
    ]
    assert run(*line).exit_code == 1
    assert run(*line, "--create-dataset", "--no-checksums").exit_code == 0
    assert run(*line, "--create-dataset", "--no-checksums").exit_code == 0
    key = "part-000000.tar/photos/d0/0.bin"
    (found,) = json_of(run("get", key, "--store", "new", "--dataset", "other", "--json"))
    assert (found["tag"], found["checksum"], found["length"]) == (9, "00000000", 100)


def test_a_mistyped_source_makes_no_store(run, opener, tmp_path):
    result = run("index", tmp_path / "absent", "--store", "new")
    assert (result.exit_code, opener.stores) == (1, {})
    assert result.stderr == f"kvmeta: {tmp_path / 'absent'}: no such file or directory\n"


def test_a_damaged_tar_exits_with_code_3(run, tmp_path, photos):
    run("pack", tmp_path / "photos", "--into", tmp_path / "shards")
    shard = tmp_path / "shards" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    result = run("index", shard, "--store", "new")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"kvmeta: {shard}: damaged at byte ")


def test_a_run_over_a_damaged_tar_says_how_much_is_registered(run, tmp_path, photos):
    run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--shard-bytes", "8KiB")
    shard = tmp_path / "shards" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    result = run("index", tmp_path / "shards", "--store", "new")
    assert result.exit_code == 3
    assert result.stderr.endswith("files of 1 tar are registered; run it again after mending\n")
    assert run("get", "photos/d0/0.bin", "--store", "new").exit_code == 0


def test_ctrl_c_says_how_much_is_registered(run, tmp_path, photos, monkeypatch):
    for i in range(2):
        run("pack", tmp_path / "photos" / f"d{i}", "--into", tmp_path / "shards", "--name", f"s{i}")
    tar = kinds.KINDS[0]

    def until_the_second(path, **named):
        if path.name.startswith("s1"):
            raise KeyboardInterrupt
        return tar.scan(path, **named)

    monkeypatch.setattr(kinds, "KINDS", (tar._replace(scan=until_the_second),))
    result = run("index", tmp_path / "shards", "--store", "new")
    assert result.exit_code == 130
    assert result.stderr == "kvmeta: interrupted; 10 files of 1 tar are registered; run it again\n"


def test_tars_that_would_share_their_ids_make_no_store(run, opener, tmp_path, photos):
    for folder in ("a", "b"):
        run("pack", tmp_path / "photos", "--into", tmp_path / folder)
    result = run("index", tmp_path / "a", tmp_path / "b", "--id", "path", "--store", "new")
    assert (result.exit_code, opener.stores) == (2, {})


def test_a_second_pack_into_the_same_place_is_refused_unless_overwriting(run, tmp_path, photos):
    line = ["pack", tmp_path / "photos", "--into", tmp_path / "shards"]
    assert run(*line).exit_code == 0
    assert run(*line).exit_code == 2
    assert run(*line, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("4k", 4096), ("1.5 MiB", 3 << 19), ("1GB", 1 << 30)]
)
def test_sizes_are_read_in_powers_of_1024(text, size):
    from kvmeta.cli.options import parse_size

    assert parse_size(text) == size


def test_a_malformed_size_is_wrong_usage(run, tmp_path):
    result = run("pack", tmp_path, "--into", tmp_path / "x", "--shard-bytes", "big")
    assert result.exit_code == 2
    assert "'big' is not a size" in result.stderr


def test_a_forced_progress_bar_goes_to_stderr_and_leaves_stdout_alone(run, tmp_path, photos):
    result = run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--progress", "--json")
    assert result.exit_code == 0
    assert json_of(result)[0]["files"] == 20


def test_without_rich_there_is_no_bar_and_no_error(run, tmp_path, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert run("pack", tmp_path / "photos", "--into", tmp_path / "shards", "--progress").exit_code == 0


# --- get, lookup, cat ------------------------------------------------------------------------------------


def test_get_prints_a_files_location_in_two_columns(run, catalog, tmp_path):
    result = run("get", KEY, "--store", catalog)
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(shown) == ["id", "volume", "length", "offset", "checksum", "tag", "version"]
    assert shown["id"] == ids_to_hex(KEY)[0]
    assert shown["volume"] == f"1  ({(tmp_path / 'shards0' / 'shard-000000.tar').as_uri()})"
    assert shown["length"] == "100"


def test_json_of_a_file_has_its_uri_and_large_numbers_as_text(run, catalog, tmp_path):
    (found,) = json_of(run("get", KEY, "--store", catalog, "--json"))
    assert found["uri"] == (tmp_path / "shards0" / "shard-000000.tar").as_uri()
    assert found["found"] is True
    assert found["version"].isdecimal()
    text = dict(line.split(maxsplit=1) for line in run("get", KEY, "--store", catalog).stdout.splitlines())
    assert found["checksum"] == text["checksum"]
    assert len(found["checksum"]) == 8


def test_the_uri_of_a_volume_that_is_not_registered_is_null(run, catalog, opener):
    opener.stores[catalog].volumes._by_number.clear()
    assert json_of(run("get", KEY, "--store", catalog, "--json"))[0]["uri"] is None
    assert "(not registered)" in run("get", KEY, "--store", catalog).stdout


def test_lookup_by_key_prints_the_keys_and_accepts_any_line_endings(run, catalog):
    line = ["lookup", "--ids", "-", "--format", "key", "--store", catalog]
    asked = f"{KEY}\r\n\r\n\n{ABSENT}\r\n".encode() + b"odd\xff"
    rows = json_of(run(*line, "--json", input=asked))
    assert [row["key"] for row in rows] == [KEY, ABSENT, "odd\udcff"]
    assert [row["found"] for row in rows] == [True, False, False]
    lines = run(*line, input=asked).stdout.splitlines()
    assert [each.split()[-1] for each in lines] == ["KEY", KEY, ABSENT, "odd\\xff"]
    assert [each.index(key) for each, key in zip(lines, ["KEY", KEY, ABSENT, "odd"], strict=True)] == [92] * 4


def test_blank_lines_of_hex_are_skipped(run, catalog):
    line = ["lookup", "--ids", "-", "--format", "hex", "--store", catalog]
    assert run(*line, input=f"\r\n{ids_to_hex(KEY)[0]}\r\n\n").stderr == "found 1 of 1\n"
    assert run(*line, input="\n").stderr == "found 0 of 0\n"


def test_a_file_of_text_given_as_raw_ids_is_refused_before_any_answer(run, catalog, opener, tmp_path):
    (tmp_path / "ids").write_text(f"{KEY}\n" * 4)
    result = run("lookup", "--ids", tmp_path / "ids", "--store", catalog)
    assert (result.exit_code, result.stdout, opener.modes) == (2, "", [])
    assert "36 bytes" in result.stderr
    assert "--format key" in result.stderr


def test_get_by_hex_is_the_same_file(run, catalog):
    by_key = run("get", KEY, "--store", catalog, "--json")
    by_hex = run("get", "--hex", ids_to_hex(KEY)[0], "--store", catalog, "--json")
    assert json_of(by_key) == json_of(by_hex)


def test_an_unknown_key_prints_one_line_and_exits_with_1(run, catalog):
    result = run("get", ABSENT, "--store", catalog)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"kvmeta: no file under the key '{ABSENT}'\n"


def test_a_malformed_hex_id_is_wrong_usage(run, catalog):
    result = run("get", "--hex", "abc", "--store", catalog)
    assert result.exit_code == 2
    assert "expected 32 hexadecimal digits" in result.stderr


@pytest.mark.parametrize("form", ["raw", "hex", "key"])
@pytest.mark.parametrize("batch_rows", [3, 65_536])
def test_lookup_answers_in_the_order_asked_in_every_format(
    run, catalog, tmp_path, form, batch_rows, monkeypatch
):
    monkeypatch.setattr("kvmeta.cli.lookup._BATCH_ROWS", batch_rows)
    keys = [f"d{i % 2}/{i}.bin" for i in (7, 0, 19, 4)] + [ABSENT, KEY]
    written = {
        "raw": as_ids(keys).tobytes(),
        "hex": "\n".join(ids_to_hex(keys)).upper().encode(),
        "key": "".join(f"{key}\n" for key in keys).encode(),
    }[form]
    (tmp_path / "ids").write_bytes(written)
    result = run("lookup", "--ids", tmp_path / "ids", "--format", form, "--store", catalog, "--json")
    assert result.exit_code == 1
    assert result.stderr == "found 5 of 6\n"
    rows = json_of(result)
    assert [row["id"] for row in rows] == ids_to_hex(keys)
    assert [row.get("length") for row in rows] == [107, 100, 119, 104, None, 100]
    assert rows[4]["found"] is False
    piped = run("lookup", "--ids", "-", "--format", form, "--store", catalog, "--json", input=written)
    assert piped.stdout == result.stdout


def test_lookup_lines_are_aligned_for_people(run, catalog, tmp_path):
    (tmp_path / "ids").write_bytes(as_ids([KEY, ABSENT, "d1/1.bin"]).tobytes())
    lines = run("lookup", "--ids", tmp_path / "ids", "--store", catalog).stdout.splitlines()
    assert lines[0].split() == ["ID", "VOLUME", "LENGTH", "OFFSET", "CHECKSUM", "TAG"]
    assert len(lines[0]) == len(lines[1]) == len(lines[3])
    assert lines[2].split() == [ids_to_hex(ABSENT)[0], "absent"]


def test_lookup_of_only_known_ids_exits_with_0(run, catalog, tmp_path):
    (tmp_path / "ids").write_bytes(as_ids([KEY]).tobytes())
    assert run("lookup", "--ids", tmp_path / "ids", "--store", catalog).exit_code == 0


def test_lookup_of_damaged_ids_answers_the_rest_and_exits_with_3(run, catalog, opener, tmp_path):
    opener.stores[catalog].dataset("default").damaged.add(as_ids(KEY)[0].item())
    (tmp_path / "ids").write_bytes(as_ids([KEY, "d1/1.bin"]).tobytes())
    result = run("lookup", "--ids", tmp_path / "ids", "--store", catalog)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[1].split()[1] == "damaged"
    assert result.stderr == "found 1 of 2, 1 unanswered because of damage\n"


def test_half_an_id_at_the_end_is_wrong_usage(run, catalog):
    result = run("lookup", "--ids", "-", "--store", catalog, input=b"x" * 20)
    assert result.exit_code == 2
    assert "end with 4 bytes of an ID" in result.stderr


def test_cat_writes_what_it_can_and_names_what_is_missing(run, catalog, photos):
    result = run("cat", KEY, ABSENT, "d1/1.bin", "--store", catalog)
    assert result.exit_code == 1
    assert result.stdout_bytes == photos["photos/d0/0.bin"] + photos["photos/d1/1.bin"]
    assert result.stderr == f"kvmeta: no file under the key '{ABSENT}'\n"


# --- scan ------------------------------------------------------------------------------------------------


def test_scan_lists_every_entry_once(run, catalog):
    rows = json_of(run("scan", "--store", catalog, "--json"))
    assert len({row["id"] for row in rows}) == 20
    assert list(rows[0]) == ["id", "found", "volume", "length", "offset", "checksum", "tag", "version"]
    assert len(run("scan", "--store", catalog).stdout.splitlines()) == 21


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tag", "7"], 10),
        (["--limit", "3"], 3),
        (["--limit", "0"], 0),
        (["--sample", "0.5"], 10),
        (["--shard", "1/4"], 5),
        (["--tag", "7", "--limit", "100"], 10),
    ],
)
def test_scan_options_filter_the_entries(run, catalog, options, expected):
    assert len(json_of(run("scan", "--store", catalog, "--json", *options))) == expected


def test_scan_stops_at_the_limit_across_pages(run, catalog, monkeypatch):
    monkeypatch.setattr("kvmeta.cli.scan._PAGE_ROWS", 4)
    assert len(json_of(run("scan", "--store", catalog, "--json", "--limit", "7"))) == 7


@pytest.mark.parametrize("sample", ["0", "-1", "1.5", "some"])
def test_an_out_of_range_sample_is_refused_before_any_output(run, catalog, sample):
    result = run("scan", "--store", catalog, "--sample", sample)
    assert (result.exit_code, result.stdout) == (2, "")


def test_an_out_of_range_shard_is_wrong_usage(run, catalog):
    assert run("scan", "--store", catalog, "--shard", "4/4").exit_code == 2
