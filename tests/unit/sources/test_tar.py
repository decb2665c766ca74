"""The scanner against tarfile, on archives of every format, and on archives that are wrong."""

import bz2
import gzip
import io
import lzma
import os
import tarfile

import google_crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmeta.errors import CorruptionError, FormatError, InputError, NotFoundError, UnsupportedError
from kvmeta.sources.tar import scan
from tests.unit.sources.archives import (
    END,
    extended,
    header,
    padded,
    pax_records,
    rows_by_tarfile,
    rows_of,
    with_sum,
    write_tar,
)

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
SIZES = st.sampled_from([0, 1, 7, 8, 9, 511, 512, 513, 1024, 1500, 4000])
NAME_PARTS = st.text(
    st.one_of(
        st.sampled_from("ab.é漢🙂 \udc80\udcff"), st.characters(codec="utf-8", exclude_characters="/\0\n")
    ),
    min_size=1,
    max_size=120,
)
NAMES = (
    st.lists(NAME_PARTS, min_size=1, max_size=4).map("/".join).filter(lambda name: not name.startswith("./"))
)


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "a.tar"


# --- what is found ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    members=st.dictionaries(NAMES, SIZES, max_size=8),
    mtime=st.sampled_from([0, 1.5]),
    rows=st.integers(1, 4),
    window=st.sampled_from([512, 1024, 4096, 1 << 16]),
)
def test_any_members_in_any_window_are_found_as_tarfile_finds_them(
    archive, fmt, members, mtime, rows, window
):
    contents = {name: os.urandom(size) for name, size in members.items()}
    write_tar(archive, contents, fmt, mtime=mtime)
    assert rows_of(archive, rows_max=rows, window_bytes=window) == rows_by_tarfile(archive)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    members=st.dictionaries(
        st.tuples(st.text("abé", max_size=70), st.text("cdé", min_size=1, max_size=48)).map(
            lambda parts: "/".join(part for part in parts if part)
        ),
        SIZES,
        max_size=6,
    )
)
def test_ustar_names_are_joined_from_prefix_and_name(archive, members):
    contents = {name: os.urandom(size) for name, size in members.items()}
    try:
        write_tar(archive, contents, tarfile.USTAR_FORMAT)
    except ValueError:
        return  # ustar cannot hold every name
    assert rows_of(archive, window_bytes=512) == rows_by_tarfile(archive)


@pytest.mark.parametrize("fmt", FORMATS)
def test_other_entries_are_skipped_and_counted_unless_they_are_directories(archive, fmt):
    kinds = [
        tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
    ]  # fmt: skip
    with tarfile.open(archive, "w", format=fmt) as tar:
        for i, kind in enumerate(kinds):
            entry = tarfile.TarInfo(f"other{i}" + "x" * 50)
            entry.type, entry.linkname = kind, "target" * (20 if fmt != tarfile.USTAR_FORMAT else 1)
            tar.addfile(entry)
            entry = tarfile.TarInfo(f"file{i}")
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
    (members,) = scan(archive)
    assert [members.name(i) for i in range(len(members))] == [b"file%d" % i for i in range(6)]
    assert members.skipped == 5
    assert rows_of(archive) == rows_by_tarfile(archive)


def test_one_leading_dot_slash_is_removed(archive):
    write_tar(archive, {"./a": b"1", "././b": b"2", "..c": b"3", ".d": b"4"})
    assert [row[0] for row in rows_of(archive)] == [b"a", b"./b", b"..c", b".d"]


def test_columns_have_the_promised_types(archive):
    (members,) = scan(write_tar(archive, {"a": b"1", "bc": b"22"}))
    assert (members.names.dtype, members.name_ends.dtype) == ("u1", "i8")
    assert (members.offsets.dtype, members.lengths.dtype, members.checksums.dtype) == ("u8", "u8", "u4")
    assert members.names.tobytes() == b"abc"
    assert members.name_ends.tolist() == [1, 3]


def test_an_archive_without_members_yields_nothing(archive):
    assert rows_of(write_tar(archive, {})) == []


def test_batches_hold_at_most_the_rows_asked_for(archive):
    write_tar(archive, {f"{i}": b"" for i in range(10)})
    assert [len(members) for members in scan(archive, rows_max=4)] == [4, 4, 2]


def test_names_that_outgrow_the_buffer_come_in_smaller_batches(archive, monkeypatch):
    monkeypatch.setattr("kvmeta.sources.tar._NAME_BYTES", 600)
    names = {f"{i}" + "n" * 200 * i: b"x" for i in range(6)}
    write_tar(archive, names, tarfile.GNU_FORMAT)
    assert [row[0].decode() for row in rows_of(archive)] == list(names)


def test_long_extended_headers_are_gathered_over_many_windows(archive):
    name = "d/" * 9_000 + "f"
    write_tar(archive, {name: b"x", "short": b"y"})
    assert [row[0].decode() for row in rows_of(archive, window_bytes=512)] == [name, "short"]


def test_without_checksums_large_members_are_not_read(archive, monkeypatch):
    write_tar(archive, {"large": bytes(1 << 20), "small": b"s"}, tarfile.USTAR_FORMAT)
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *call: read.append(preadv(*call)) or read[-1])
    rows = rows_of(archive, checksums=False, window_bytes=4096)
    assert rows == [(b"large", 512, 1 << 20, 0), (b"small", 1024 + (1 << 20), 1, 0)]
    assert sum(read) < 64 << 10


# --- dialects tarfile does not write ---------------------------------------------------------------------


def test_old_tar_without_magic_is_read(archive):
    block = header(b"old/file", b"%11o " % 5, b"\0", magic=b"")
    folder = header(b"old/", b"%11o " % 4096, b"\0", magic=b"")  # a directory's size told no bytes
    archive.write_bytes(folder + block + padded(b"12345") + END)
    assert (
        rows_of(archive)
        == [(b"old/file", 1024, 5, google_crc32c.value(b"12345"))]
        == rows_by_tarfile(archive)
    )


def test_base_256_sizes_are_read(archive):
    size = b"\x80" + (700).to_bytes(11, "big")
    archive.write_bytes(header(b"a", size) + padded(b"z" * 700) + END)
    assert rows_of(archive)[0][2] == 700


def test_a_checksum_of_signed_bytes_is_accepted(archive):
    block = bytearray(header("é".encode() * 2))
    archive.write_bytes(with_sum(block, signed=True) + END)
    assert rows_of(archive)[0][0] == "é".encode() * 2


def test_times_in_a_gnu_header_are_not_taken_for_a_prefix(archive):
    archive.write_bytes(header(b"a", magic=b"ustar  \0", prefix=b"14000000000\0") + END)
    assert rows_of(archive)[0][0] == b"a"


def test_the_pax_name_and_size_win_over_the_header_and_the_gnu_name(archive):
    records = pax_records(path="long/näme", size="3", comment="no matter")
    long_name = header(b"././@LongLink", 4, b"L") + padded(b"gnu\0")
    archive.write_bytes(
        long_name + extended(records) + header(b"short", 0) + padded(b"abc") + header(b"next") + END
    )
    assert [(row[0], row[2]) for row in rows_of(archive)] == [("long/näme".encode(), 3), (b"next", 0)]


def test_the_pax_name_wins_whichever_comes_first(archive):
    long_name = header(b"././@LongLink", 4, b"L") + padded(b"gnu\0")
    archive.write_bytes(extended(pax_records(path="pax")) + long_name + header(b"short") + END)
    assert rows_of(archive) == rows_by_tarfile(archive) == [(b"pax", 2560, 0, 0)]


def test_sizes_in_link_and_directory_headers_are_ignored(archive):
    others = b"".join(header(b"other", 4096, kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6"))
    archive.write_bytes(others + header(b"a") + END)
    assert rows_of(archive) == rows_by_tarfile(archive) == [(b"a", 3584, 0, 0)]


def test_earlier_pax_names_survive_a_longer_extended_header(archive):
    long_comment = extended(pax_records(comment="c" * 20_000))
    archive.write_bytes(
        extended(pax_records(path="everywhere"), b"g") + long_comment + header(b"a")
        + extended(pax_records(path="own")) + extended(pax_records(comment="c" * 40_000)) + header(b"b") + END
    )  # fmt: skip
    assert [row[0] for row in rows_of(archive)] == [b"everywhere", b"own"]


def test_a_global_pax_header_applies_to_all_members_without_their_own(archive):
    archive.write_bytes(
        extended(pax_records(comment="0123abcd", path="everywhere"), b"g")
        + header(b"a")
        + extended(pax_records(path="own"))
        + header(b"b")
        + header(b"c")
        + END
    )
    assert rows_of(archive) == rows_by_tarfile(archive)
    assert [row[0] for row in rows_of(archive)] == [b"everywhere", b"own", b"everywhere"]


def test_long_link_names_are_skipped(archive):
    long_link = header(b"././@LongLink", 600, b"K") + padded(b"t" * 600)
    archive.write_bytes(long_link + header(b"link", 0, b"2") + header(b"file") + END)
    assert [row[0] for row in rows_of(archive)] == [b"file"]


def test_sparse_files_of_both_kinds_are_counted_and_their_bytes_passed_over(archive):
    old = bytearray(header(b"old-sparse", 512, b"S", magic=b"ustar  \0"))
    old[482] = 1  # its map goes on in two more blocks
    first, last = bytearray(512), bytearray(512)
    first[504] = 1
    pax = extended(pax_records(GNU__sparse__major="1", GNU__sparse__name="new"))
    archive.write_bytes(
        with_sum(old) + bytes(first) + bytes(last) + b"D" * 512
        + pax + header(b"GNUSparseFile.1/new", 1024) + b"E" * 1024
        + header(b"plain", 2) + padded(b"ok") + END
    )  # fmt: skip
    for window in (512, 1 << 16):
        batches = list(scan(archive, window_bytes=window))
        assert [each.name(0) for each in batches] == [b"plain"]
        assert batches[0].skipped == 2


def test_skipped_entries_after_the_last_member_are_still_counted(archive):
    archive.write_bytes(header(b"a") + header(b"l", 0, b"2") + END)
    assert [(len(each), each.skipped) for each in scan(archive, rows_max=1)] == [(1, 1)]
    archive.write_bytes(header(b"l", 0, b"2") + END)
    assert [(len(each), each.skipped) for each in scan(archive)] == [(0, 1)]


def test_unknown_types_are_skipped_with_their_bytes(archive):
    archive.write_bytes(header(b"vendor", 513, b"Z") + bytes(1024) + header(b"a") + END)
    (members,) = scan(archive)
    assert (members.name(0), members.skipped) == (b"a", 1)


def test_bytes_after_the_end_of_the_archive_are_ignored(archive):
    archive.write_bytes(header(b"a") + END + b"\xff" * 700)
    assert [row[0] for row in rows_of(archive)] == [b"a"]


def test_one_zero_block_at_the_end_of_the_file_is_an_end(archive):
    archive.write_bytes(header(b"a") + bytes(512))
    assert len(rows_of(archive)) == 1


# --- what is wrong ---------------------------------------------------------------------------------------


def three_members() -> bytes:
    return b"".join(header(b"f%d" % i, 600) + padded(bytes([65 + i]) * 600) for i in range(3)) + END


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(cut=st.integers(1, 3 * 1536 + 511), window=st.sampled_from([512, 4096]), checksums=st.booleans())
def test_an_archive_cut_anywhere_is_reported(archive, cut, window, checksums):
    archive.write_bytes(three_members()[:cut])
    expected = FormatError if cut < 262 else CorruptionError
    rows = []

    def take_all():
        for members in scan(archive, window_bytes=window, checksums=checksums):
            rows.extend(members.name(i) for i in range(len(members)))

    with pytest.raises(expected):
        take_all()
    # A member counts once all of its bytes are there, even where its padding is not.
    assert rows == [b"f%d" % i for i in range(3) if cut >= 1536 * i + 512 + 600]


def test_members_before_damage_are_yielded_and_its_offset_is_reported(archive):
    damaged = bytearray(three_members())
    damaged[1536 + 3] ^= 1
    archive.write_bytes(damaged)
    batches = scan(archive)
    assert next(batches).name(0) == b"f0"
    with pytest.raises(CorruptionError, match="byte 1,536: the header's checksum") as caught:
        next(batches)
    assert caught.value.path == str(archive)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(at=st.integers(0, 511), bit=st.integers(0, 7))
def test_every_flipped_bit_in_a_header_is_noticed(archive, at, bit):
    damaged = bytearray(three_members())
    damaged[1536 + at] ^= 1 << bit
    archive.write_bytes(damaged)
    try:
        rows = rows_of(archive)
    except CorruptionError:
        return
    # Only in the checksum field may a bit not matter: a space for a leading "0", a NUL for a space behind it.
    assert 148 <= at < 156
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(b"a", b"12x4"), "size is not a number"),
        (header(b"a", b"\xff" * 12), "size is not a number"),
        (header(b"a", b"\x80" + b"\xff" * 11), "size is not a number"),
        (extended(b"30 path=x\n") + header(b"a"), "records are malformed"),
        (extended(b"x path=x\n") + header(b"a"), "records are malformed"),
        (extended(b"9 pathx\n\n") + header(b"a"), "records are malformed"),
        (extended(pax_records(size="12y")) + header(b"a"), "records are malformed"),
        (header(b"a") + bytes(512) + header(b"b"), "single zero block"),
        (header(b"x", 1 << 30, b"x"), "claims 1,073,741,824 bytes"),
    ],
    ids=["octal", "negative", "huge", "length", "letters", "no-equals", "pax-size", "lone-zero", "extended"],
)
def test_damage_is_named_with_its_offset(archive, content, message):
    archive.write_bytes(header(b"first") + content + END)
    with pytest.raises(CorruptionError, match=rf"damaged at byte [\d,]+: .*{message}"):
        rows_of(archive)


def test_a_first_header_with_magic_but_a_wrong_sum_is_damage_not_another_format(archive):
    damaged = bytearray(three_members())
    damaged[0] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(CorruptionError, match="byte 0"):
        rows_of(archive)


@pytest.mark.parametrize(
    ("compress", "kind"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda content: b"\x28\xb5\x2f\xfd" + content, "zstd"),
    ],
)
@pytest.mark.parametrize("size", [20, 2000])
def test_a_compressed_tar_is_refused_with_the_remedy(archive, compress, kind, size):
    archive.write_bytes(compress(os.urandom(size)))
    with pytest.raises(UnsupportedError, match=rf"compressed \({kind}\).*Unpack it first"):
        rows_of(archive)


def test_a_member_name_that_looks_like_compression_is_accepted(archive):
    archive.write_bytes(header(b"BZh91AY") + END)
    assert rows_of(archive)[0][0] == b"BZh91AY"


@pytest.mark.parametrize("content", [b"", b"hello", os.urandom(5000)], ids=["empty", "short", "noise"])
def test_a_file_that_is_not_a_tar_is_reported_as_such(archive, content):
    archive.write_bytes(content)
    with pytest.raises(FormatError, match="not a tar file"):
        rows_of(archive)


def test_a_member_of_4_gib_is_refused_by_name(archive):
    with open(archive, "wb") as file:
        file.write(header(b"small") + header(b"huge.bin", b"\x80" + (1 << 32).to_bytes(11, "big")))
        file.truncate((1 << 32) + 4096)
    batches = scan(archive)
    assert next(batches).name(0) == b"small"
    with pytest.raises(UnsupportedError, match=r"'huge\.bin' has 4,294,967,296 bytes"):
        next(batches)


def test_a_missing_file_a_directory_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(NotFoundError):
        rows_of(tmp_path / "absent.tar")
    with pytest.raises(UnsupportedError, match="not a regular file"):
        rows_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsupportedError, match="not a regular file"):
        rows_of(tmp_path / "pipe")


@pytest.mark.parametrize("options", [{"rows_max": 0}, {"window_bytes": 0}, {"window_bytes": 1000}])
def test_impossible_buffers_are_refused(archive, options):
    write_tar(archive, {"a": b"1"})
    with pytest.raises(InputError):
        rows_of(archive, **options)
