"""Packing directories into shards: names, order, cuts, and that no half shard is left behind."""

import os
import socket
import tarfile

import pytest

from kvmeta.errors import InputError, NotFoundError, UnavailableError, UnsupportedError
from kvmeta.sources import pack


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name, content in {
        "b.txt": b"bb",
        "a.txt": b"a",
        "sub/c.txt": b"ccc",
        "sub/deep/d": b"",
        "z": b"z",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def members(path):
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_members_carry_the_directorys_name_and_come_in_order(tmp_path, photos):
    report = pack([photos], tmp_path / "out")
    found = members(tmp_path / "out" / "shard-000000.tar")
    assert list(found.items()) == [
        ("photos/a.txt", b"a"),
        ("photos/b.txt", b"bb"),
        ("photos/sub/c.txt", b"ccc"),
        ("photos/sub/deep/d", b""),
        ("photos/z", b"z"),
    ]
    assert (report.files, report.shards, report.bytes, report.skipped, report.batches) == (5, 1, 7, 0, 0)
    assert names(tmp_path / "out") == ["shard-000000.tar"]


def test_equal_directories_give_equal_shards(tmp_path, photos):
    pack(photos, tmp_path / "one")
    pack(photos, tmp_path / "two")
    one, two = ((tmp_path / each / "shard-000000.tar").read_bytes() for each in ("one", "two"))
    assert one == two


def test_a_trailing_slash_or_dots_do_not_change_the_names(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(photos)
    pack(".", tmp_path / "one")
    pack(f"{photos}/sub/../", tmp_path / "two")
    assert list(members(tmp_path / "one" / "shard-000000.tar")) == list(
        members(tmp_path / "two" / "shard-000000.tar")
    )


def test_shards_are_cut_before_they_outgrow_their_size_and_large_files_stand_alone(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}").write_bytes(b"x" * (5_000 if i == 4 else 400))
    report = pack(folder, tmp_path / "out", shard_bytes=4096, name="part")
    shards = sorted((tmp_path / "out").iterdir())
    assert [each.name for each in shards] == [f"part-{i:06d}.tar" for i in range(4)]
    assert [list(members(each)) for each in shards] == [
        ["d/0", "d/1", "d/2", "d/3"], ["d/4"], ["d/5", "d/6", "d/7", "d/8"], ["d/9"],
    ]  # fmt: skip
    assert report.shards == 4


def test_odd_names_survive(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    odd = os.fsencode(folder) + b"/\xff\xfe n\xc3\xa4me" + b"x" * 150
    with open(odd, "wb") as file:
        file.write(b"1")
    pack(folder, tmp_path / "out")
    (name,) = members(tmp_path / "out" / "shard-000000.tar")
    assert os.fsencode(name) == b"d/\xff\xfe n\xc3\xa4me" + b"x" * 150


def test_links_pipes_and_sockets_are_counted_never_followed(tmp_path, photos):
    (photos / "link").symlink_to("a.txt")
    (photos / "dirlink").symlink_to("sub")
    (photos / "loop").symlink_to(photos)
    os.mkfifo(photos / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(photos / "socket"))
    report = pack(photos, tmp_path / "out")
    assert (report.files, report.skipped) == (5, 5)


def test_an_existing_shard_is_not_overwritten_unless_asked(tmp_path, photos):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-000003.tar").write_text("precious")
    with pytest.raises(InputError, match=r"holds shard-000003\.tar already"):
        pack(photos, out)
    assert names(out) == ["shard-000003.tar"]
    pack(photos, out, name="other")
    (out / "shard-000000.tar").write_text("old")
    pack(photos, out, overwrite=True)
    assert len(members(out / "shard-000000.tar")) == 5


def test_overwriting_removes_the_old_shards_beyond_the_last_one_written(tmp_path, photos):
    out = tmp_path / "out"
    assert pack(photos, out, shard_bytes=1024).shards == 5
    pack(photos, out, name="other")
    others = {"other-000000.tar", "shard-0000004.tar", "shard-extra.tar", "my-shard-000004.tar"}
    for name in others - {"other-000000.tar"}:
        (out / name).write_text("precious")
    report = pack(photos, out, shard_bytes=4096, overwrite=True)
    assert 1 < report.shards < 5
    written = {f"shard-{number:06d}.tar" for number in range(report.shards)}
    assert set(names(out)) == written | others


def test_an_overwriting_run_that_fails_removes_nothing(tmp_path, photos, monkeypatch):
    out = tmp_path / "out"
    pack(photos, out, shard_bytes=1024)
    before = names(out)
    unreadable(monkeypatch, "photos/z")
    with pytest.raises(UnavailableError):
        pack(photos, out, overwrite=True)
    assert names(out) == before


def unreadable(monkeypatch, name):
    """Make one file unopenable; permissions would not stop root."""
    real = os.open

    def refuse(path, *rest, **named):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)


def test_an_unreadable_file_is_an_error_by_name_and_leaves_nothing(tmp_path, photos, monkeypatch):
    unreadable(monkeypatch, "sub/c.txt")
    with pytest.raises(UnavailableError, match=r"c\.txt: Permission denied"):
        pack(photos, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_an_unreadable_file_is_only_counted_if_skipping_is_allowed(tmp_path, photos, monkeypatch):
    unreadable(monkeypatch, "sub/c.txt")
    report = pack(photos, tmp_path / "out", skip_unreadable=True)
    assert (report.files, report.skipped) == (4, 1)


@pytest.fixture
def shrinking(photos, monkeypatch):
    """Add a file, last in order, that turns out shorter than it was when it was opened."""
    real = os.fstat
    (photos / "zz").write_bytes(b"x" * 1_500_000)

    class Longer:
        def __init__(self, status):
            self.st_size, self.st_mtime = status.st_size, status.st_mtime
            if self.st_size == 1_500_000:
                self.st_size += 5_000

    monkeypatch.setattr(os, "fstat", lambda fd: Longer(real(fd)))


@pytest.mark.usefixtures("shrinking")
def test_a_file_that_shrinks_while_it_is_packed_is_an_error(tmp_path, photos):
    with pytest.raises(UnavailableError, match="zz became shorter"):
        pack(photos, tmp_path / "out")
    assert names(tmp_path / "out") == []


@pytest.mark.usefixtures("shrinking")
def test_a_shrinking_file_leaves_no_trace_when_unreadable_files_are_skipped(tmp_path, photos):
    report = pack(photos, tmp_path / "out", skip_unreadable=True)
    assert (report.files, report.skipped) == (5, 1)
    (photos / "zz").unlink()
    pack(photos, tmp_path / "without")
    shrunk, without = ((tmp_path / each / "shard-000000.tar").read_bytes() for each in ("out", "without"))
    assert shrunk == without


def test_a_run_that_dies_leaves_no_half_shard_under_a_final_name(tmp_path, photos, monkeypatch):
    def die(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        pack(photos, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_file_of_4_gib_is_refused_by_name_or_skipped(tmp_path, photos):
    with open(photos / "huge", "wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(UnsupportedError, match=r"huge has 4,294,967,296 bytes"):
        pack(photos, tmp_path / "out")
    assert pack(photos, tmp_path / "out", skip_unreadable=True).skipped == 1


def test_wrong_arguments_are_refused(tmp_path, photos):
    (tmp_path / "other" / "photos").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no such directory"):
        pack(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(InputError, match=r"both would name their members photos/"):
        pack([photos, tmp_path / "other" / "photos"], tmp_path / "out")
    with pytest.raises(InputError, match="must go outside"):
        pack(photos, photos / "shards")
    with pytest.raises(InputError, match="at least one"):
        pack([], tmp_path / "out")
    with pytest.raises(InputError, match="shard_bytes"):
        pack(photos, tmp_path / "out", shard_bytes=10)
    with pytest.raises(InputError, match="name"):
        pack(photos, tmp_path / "out", name="a/b")
    with pytest.raises(InputError, match="cannot name"):
        pack("/", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_directory_gives_no_shard(tmp_path):
    (tmp_path / "d").mkdir()
    assert pack(tmp_path / "d", tmp_path / "out").shards == 0


def test_progress_is_reported_and_ends_at_the_total(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("kvmeta.sources.packer._REPORT_FILES", 2)
    seen = []
    pack(photos, tmp_path / "out", progress=seen.append)
    assert [each.files for each in seen] == [2, 4, 5]
    assert seen[-1].bytes_done == 7
