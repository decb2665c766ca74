"""Indexing tars into a dataset: which IDs, which locations, in which batches, and what goes wrong."""

import functools
import io
import os
import tarfile
from urllib.parse import unquote, urlparse

import google_crc32c
import numpy as np
import pytest
import xxhash

from kvmeta.errors import CorruptionError, InputError, NotFoundError, StorageFullError
from kvmeta.ids import as_ids
from kvmeta.location import LOCATION
from kvmeta.sources import Report, index, kinds, pack
from tests.unit.sources.archives import write_tar


class Shelf:
    """A dataset and the volumes of a store, in a dict."""

    def __init__(self):
        self.entries = {}
        self.uris = []
        self.batches = []

    def put(self, ids, locations):
        assert ids.dtype == "V16"
        assert locations.dtype == LOCATION
        assert len(ids) == len(locations)
        self.batches.append(len(ids))
        self.entries.update(zip(ids.tolist(), locations, strict=True))

    def add(self, uri):
        if uri not in self.uris:
            self.uris.append(uri)
        return self.uris.index(uri) + 1

    def location(self, one_id):
        return self.entries[as_ids(one_id)[0].item()]

    def read(self, one_id):
        location = self.location(one_id)
        path = unquote(urlparse(self.uris[location["volume"] - 1]).path)
        with open(path, "rb") as file:
            file.seek(int(location["offset"]))
            content = file.read(int(location["length"]))
        assert google_crc32c.value(content) == location["checksum"]
        return content


@pytest.fixture
def shelf():
    return Shelf()


def test_every_member_is_found_and_read_by_its_name(tmp_path, shelf):
    contents = {f"img/{i:04d}.jpg": os.urandom(i) for i in range(600)} | {"näme\udcff": b"odd", "empty": b""}
    path = write_tar(tmp_path / "a b.tar", contents)
    report = index(shelf, shelf, path, tag=7)
    assert {key: shelf.read(key) for key in contents} == contents
    assert {int(each["tag"]) for each in shelf.entries.values()} == {7}
    assert shelf.uris == [path.as_uri()]
    size = sum(map(len, contents.values()))
    assert report == Report(602, 1, size, 0, 1, report.seconds)


def test_equal_names_in_two_tars_stay_apart_with_the_path_rule(tmp_path, shelf):
    write_tar(tmp_path / "x.tar", {"0.txt": b"first", "1.txt": b"second"})
    write_tar(tmp_path / "y.tar", {"0.txt": b"third"})
    index(shelf, shelf, tmp_path, id="path")
    assert [shelf.read(key) for key in ("x.tar/0.txt", "x.tar/1.txt", "y.tar/0.txt")] == [
        b"first", b"second", b"third",
    ]  # fmt: skip


def test_equally_named_tars_of_different_directories_stay_apart_with_the_path_rule(tmp_path, shelf):
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        write_tar(tmp_path / folder / "x.tar", {"0": folder.encode()})
    index(shelf, shelf, [tmp_path, tmp_path / "a" / "x.tar"], id="path")
    assert len(shelf.entries) == 2
    assert [shelf.read(key) for key in ("a/x.tar/0", "b/c/x.tar/0")] == [b"a", b"b/c"]
    index(shelf, shelf, tmp_path / "a" / "x.tar", id="path")
    assert shelf.read("x.tar/0") == b"a"


def test_the_path_rule_refuses_two_tars_of_one_prefix_before_any_put(tmp_path, shelf):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "x.tar", {folder: b"1"})
    sources = [tmp_path / "a", tmp_path / "b" / "x.tar"]
    with pytest.raises(InputError, match=r"a/x\.tar and .*b/x\.tar"):
        index(shelf, shelf, sources, id="path")
    assert (shelf.entries, shelf.uris) == ({}, [])
    assert index(shelf, shelf, sources).files == 2


def test_equal_bytes_become_one_entry_with_the_content_rule(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr("kvmeta.sources.indexer._PIECE_BYTES", 100)
    large = os.urandom(1234)
    write_tar(tmp_path / "x.tar", {"a": large, "b": b"same", "c": b"same", "d": b""})
    report = index(shelf, shelf, tmp_path / "x.tar", id="content")
    assert report.files == 4
    assert len(shelf.entries) == 3
    for content in (large, b"same", b""):
        assert shelf.read(xxhash.xxh3_128_digest(content)) == content


def test_small_archives_share_a_batch_and_large_ones_fill_several(tmp_path, shelf, monkeypatch):
    monkeypatch.setattr("kvmeta.sources.indexer.ROWS_MAX", 10)
    tar = kinds.KINDS[0]
    by_tens = tar._replace(scan=functools.partial(tar.scan, rows_max=10))
    monkeypatch.setattr(kinds, "KINDS", (by_tens,))
    for i, n in enumerate([3, 4, 3, 1, 25]):
        write_tar(tmp_path / f"{i}.tar", {f"{i}-{j}": b"" for j in range(n)})
    report = index(shelf, shelf, tmp_path)
    assert shelf.batches == [10, 1, 10, 10, 5]
    assert (report.files, report.shards, report.batches) == (36, 5, 5)


def test_directories_are_searched_and_no_archive_is_read_twice(tmp_path, shelf):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    inner = write_tar(tmp_path / "deep" / "er" / "b.tar", {"b": b"1"})
    outer = write_tar(tmp_path / "a.tar", {"a": b"1"})
    (tmp_path / "note.txt").write_text("not a tar")
    report = index(shelf, shelf, [str(tmp_path), inner])
    assert shelf.uris == [outer.as_uri(), inner.as_uri()]
    assert report.shards == 2


def test_repeating_the_run_changes_nothing(tmp_path, shelf):
    write_tar(tmp_path / "a.tar", {"a": b"1", "b": b"2"})
    index(shelf, shelf, tmp_path)
    before = dict(shelf.entries)
    index(shelf, shelf, tmp_path)
    assert shelf.entries == before
    assert len(shelf.uris) == 1


def test_the_last_of_two_members_of_one_name_wins(tmp_path, shelf):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for size in (1, 2):
            entry = tarfile.TarInfo("twice")
            entry.size = size
            tar.addfile(entry, io.BytesIO(b"x" * size))
    index(shelf, shelf, tmp_path)
    assert shelf.read("twice") == b"xx"


def test_entries_indexed_without_checksums_have_checksum_zero(tmp_path, shelf):
    write_tar(tmp_path / "a.tar", {"a": b"1"})
    index(shelf, shelf, tmp_path, checksums=False)
    assert shelf.location("a")["checksum"] == 0


def test_an_empty_archive_is_a_volume_and_no_batch(tmp_path, shelf):
    write_tar(tmp_path / "a.tar", {})
    assert index(shelf, shelf, tmp_path).batches == 0
    assert len(shelf.uris) == 1
    assert shelf.batches == []


def test_progress_only_grows_and_ends_at_the_total(tmp_path, shelf):
    for i in range(4):
        write_tar(tmp_path / f"{i}.tar", {f"{i}-{j}": b"x" * 100 for j in range(20)})
    seen = []
    report = index(shelf, shelf, tmp_path, progress=seen.append)
    assert [each.bytes_done for each in seen] == sorted(each.bytes_done for each in seen)
    assert seen[-1].bytes_done == seen[-1].bytes_total == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert seen[-1].files == report.files == 80


def test_a_damaged_archive_ends_the_run_with_its_name(tmp_path, shelf):
    write_tar(tmp_path / "a.tar", {"a": b"1"})
    path = write_tar(tmp_path / "b.tar", {"b": b"1" * 2000})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CorruptionError, match=r"b\.tar") as caught:
        index(shelf, shelf, tmp_path)
    assert caught.value.path == str(path)
    assert str(caught.value).endswith(". 1 file of 1 tar is registered; run it again after mending")


@pytest.mark.parametrize("rows_max", [65_536, 4])
def test_members_read_before_a_damaged_archive_are_put_and_counted(tmp_path, shelf, monkeypatch, rows_max):
    monkeypatch.setattr("kvmeta.sources.indexer.ROWS_MAX", rows_max)
    for i in range(4):
        write_tar(tmp_path / f"{i}.tar", {f"{i}-{j}": b"x" * 600 for j in range(3)})
    damaged = tmp_path / "2.tar"
    damaged.write_bytes(damaged.read_bytes()[:2500])  # one member is whole
    with pytest.raises(CorruptionError, match="6 files of 2 tars are registered"):
        index(shelf, shelf, tmp_path)
    assert sorted(shelf.entries) == sorted(as_ids([f"{i}-{j}" for i in range(2) for j in range(3)]).tolist())


def test_an_interrupted_run_keeps_what_it_read_and_notes_how_much(tmp_path, shelf):
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", {f"{i}-{j}": b"x" for j in range(3)})

    def interrupt(step):
        if step.files == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        index(shelf, shelf, tmp_path, progress=interrupt)
    assert caught.value.__notes__ == ["6 files of 2 tars are registered; run it again"]
    assert len(shelf.entries) == 6


def test_ctrl_c_in_the_middle_of_a_put_loses_no_whole_archive(tmp_path, shelf, monkeypatch):
    write_tar(tmp_path / "a.tar", {"a": b"1"})
    put, calls = shelf.put, []

    def interrupted_once(ids, locations):
        calls.append(len(ids))
        if len(calls) == 1:
            raise KeyboardInterrupt
        put(ids, locations)

    monkeypatch.setattr(shelf, "put", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        index(shelf, shelf, tmp_path)
    assert (calls, shelf.read("a")) == ([1, 1], b"1")


def test_a_failing_put_ends_the_run(tmp_path, shelf, monkeypatch):
    calls = []

    def full(ids, locations):
        calls.append(len(ids))
        raise StorageFullError("full")

    monkeypatch.setattr(shelf, "put", full)
    write_tar(tmp_path / "a.tar", {"a": b"1"})
    with pytest.raises(StorageFullError, match="at least 0 files of 0 tars are registered"):
        index(shelf, shelf, tmp_path)
    assert calls == [1]  # what was refused is not tried again


@pytest.mark.parametrize("options", [{"id": "hash"}, {"tag": -1}, {"tag": 1 << 32}])
def test_wrong_arguments_are_refused_before_anything_is_read(tmp_path, shelf, options):
    with pytest.raises(InputError):
        index(shelf, shelf, tmp_path / "absent", **options)


def test_missing_and_empty_sources_are_refused(tmp_path, shelf):
    with pytest.raises(NotFoundError, match="absent"):
        index(shelf, shelf, tmp_path / "absent")
    with pytest.raises(InputError, match=r"no \*\.tar"):
        index(shelf, shelf, tmp_path)
    with pytest.raises(InputError, match="at least one"):
        index(shelf, shelf, [])
    assert shelf.uris == []


def test_packed_files_are_found_after_indexing(tmp_path, shelf):
    folder = tmp_path / "photos"
    contents = {}
    for i in range(50):
        path = folder / f"d{i % 3}" / f"{i}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        contents[f"photos/d{i % 3}/{i}.bin"] = os.urandom(i * 37)
        path.write_bytes(contents[f"photos/d{i % 3}/{i}.bin"])
    packed = pack(folder, tmp_path / "shards", shard_bytes=10_000)
    indexed = index(shelf, shelf, tmp_path / "shards")
    assert (packed.files, packed.shards, packed.bytes) == (indexed.files, indexed.shards, indexed.bytes)
    assert packed.shards > 3
    assert {key: shelf.read(key) for key in contents} == contents
    assert np.array_equal(sorted(shelf.entries), sorted(as_ids(list(contents)).tolist()))
