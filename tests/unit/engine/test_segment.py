from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvmeta.engine.kernels.layout import PAGE_BYTES
from kvmeta.engine.manifest import RunRecord
from kvmeta.engine.page import Bounds
from kvmeta.engine.run import Run, SegmentFiles
from kvmeta.engine.segment import Segment
from kvmeta.engine.segment_header import HEADER, SegmentRecord, file_seed, header_page, record_of, round_up
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.view import ColdReads, View
from kvmeta.engine.window import HASH_MAX, cut, merged_rows
from tests.unit.engine.rows import by_id, random_rows

STORE = bytes(range(16))


def write(path: Path, rows: np.ndarray, *, filter_bits: int = 0, offset: int = 0) -> SegmentRecord:
    writer = SegmentWriter(path, 7, STORE, Bounds.of(rows), filter_bits=filter_bits)
    for start in range(0, len(rows), 777):
        writer.append(rows[start : start + 777])
    writer.finish()
    return writer.seal(offset)


def view_of(segment: Segment) -> View:
    return View((), (Run(RunRecord(1, True, 0, (segment.record,)), (segment,)),))


def lookup(segment: Segment, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return view_of(segment).lookup(np.ascontiguousarray(rows[:, :2]), ColdReads())


def reheaded(path: Path, **fields: object) -> Segment:
    """Change fields of a segment's header, all checksums right, and open it as the manifest would name it."""
    data = bytearray(path.read_bytes())
    header = np.frombuffer(bytes(data), HEADER, 1)[0].copy()
    for name, value in fields.items():
        header[name] = value
    seed, last = np.uint64(file_seed(STORE, int(header["number"]))), len(data) // PAGE_BYTES - 1
    data[:PAGE_BYTES] = header_page(header, seed, 0)
    data[last * PAGE_BYTES :] = header_page(header, seed, last)
    path.write_bytes(data)
    return Segment(path, record_of(header), STORE)


@pytest.mark.parametrize("n", [1, 2, 130, 5000, 70_000])
@pytest.mark.parametrize("filter_bits", [0, 10])
def test_a_segment_finds_its_own_rows_and_no_others(tmp_path: Path, n: int, filter_bits: int) -> None:
    rows = by_id(random_rows(n))
    record = write(tmp_path / "s", rows, filter_bits=filter_bits)
    segment = Segment(tmp_path / "s", record, STORE)
    assert segment.damage is None
    assert record.rows == n
    got = lookup(segment, rows)
    assert got.found.all()
    assert (got.locations == rows[:, 3:]).all()
    assert not lookup(segment, random_rows(n, seed=1)).found.any()
    near = rows.copy()
    near[:, 1] ^= np.uint64(1)
    assert not lookup(segment, near).found.any()


def test_rows_that_share_their_high_half_are_told_apart(tmp_path: Path) -> None:
    rows = random_rows(4000)
    rows[:, 0] = rows[:, 0] % np.uint64(40) << np.uint64(50)
    rows = by_id(rows)
    segment = Segment(tmp_path / "s", write(tmp_path / "s", rows), STORE)
    got = lookup(segment, rows)
    assert got.found.all()
    assert (got.locations == rows[:, 3:]).all()


def test_a_few_dense_hash_ranges_are_found_too(tmp_path: Path) -> None:
    rows = random_rows(50_000)
    share = np.random.default_rng(0).choice(4096, 120, replace=False).astype(np.uint64)
    rows[:, 0] = rows[:, 0] >> np.uint64(12) | share[np.arange(len(rows)) % 120] << np.uint64(52)
    rows = by_id(rows)
    segment = Segment(tmp_path / "s", write(tmp_path / "s", rows), STORE)
    assert lookup(segment, rows).found.all()
    assert segment.tables_bytes / len(rows) < 0.2


def test_a_version_offset_given_at_seal_holds_for_every_row(tmp_path: Path) -> None:
    rows = by_id(random_rows(3000))
    rows[:, 2] = np.random.default_rng(0).integers(0, 50, 3000).astype(np.uint64) << np.uint64(18)
    offset = 5 << 30
    record = write(tmp_path / "s", rows, offset=offset)
    got = lookup(Segment(tmp_path / "s", record, STORE), rows)
    assert (got.versions == rows[:, 2] + np.uint64(offset)).all()
    assert record.lowest_version == offset + int(rows[:, 2].min())


@pytest.mark.parametrize("step", [1, 100, 999, 10_000])
def test_windows_cover_every_row_once(tmp_path: Path, step: int) -> None:
    rows = by_id(random_rows(3000 if step == 1 else 20_000))
    view = view_of(Segment(tmp_path / "s", write(tmp_path / "s", rows), STORE))
    position, parts = 0, []
    while position <= HASH_MAX:
        last = cut(view, position, HASH_MAX, step)
        parts.append(merged_rows(view, position, last))
        assert len(parts[-1]) <= step
        position = last + 1
    assert (np.concatenate(parts) == rows).all()


def test_a_damaged_page_fails_its_own_ids_alone(tmp_path: Path) -> None:
    rows = by_id(random_rows(20_000))
    path = tmp_path / "s"
    record = write(path, rows)
    data = bytearray(path.read_bytes())
    data[5 * PAGE_BYTES + 100] ^= 1
    path.write_bytes(data)
    segment = Segment(path, record, STORE)
    got = lookup(segment, rows)
    failed = np.flatnonzero(got.failed)
    page_rows = int(segment.header["page_rows"])
    assert got.found[got.failed == 0].all()
    assert set(range(4 * page_rows, 5 * page_rows)) <= set(failed.tolist())
    assert len(failed) < 1.2 * page_rows  # a walk from a neighbouring page may have to cross it
    assert segment.damaged_pages() == [4]
    low, high = segment.page_range(4)
    ids = [int(row[0]) << 64 | int(row[1]) for row in rows[4 * page_rows : 5 * page_rows]]
    assert low <= ids[0]
    assert ids[-1] <= high
    outside = sum(low <= int(row[0]) << 64 | int(row[1]) <= high for row in rows)
    assert outside <= page_rows + 2 * 80


def test_page_ranges_cover_the_hash_order_of_their_rows(tmp_path: Path) -> None:
    rows = by_id(random_rows(9000))
    segment = Segment(tmp_path / "s", write(tmp_path / "s", rows), STORE)
    page_rows = int(segment.header["page_rows"])
    for page in range(len(segment.states)):
        low, high = segment.page_range(page)
        part = rows[page * page_rows : (page + 1) * page_rows]
        assert low <= int(part[0, 0]) << 64 | int(part[0, 1])
        assert int(part[-1, 0]) << 64 | int(part[-1, 1]) <= high


@pytest.mark.parametrize("part", ["header", "footer", "bucket directory", "filter"])
def test_damage_outside_the_pages_is_reported_and_loses_no_row(tmp_path: Path, part: str) -> None:
    rows = by_id(random_rows(20_000))
    path = tmp_path / "s"
    record = write(path, rows, filter_bits=10)
    header = Segment(path, record, STORE).header
    at = {
        "header": 100,
        "footer": record.file_bytes - 50,
        "bucket directory": int(header["directory_offset"]) + 777,
        "filter": int(header["filter_offset"]) + 777,
    }[part]
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)
    segment = Segment(path, record, STORE)
    assert segment.verify_tables() == [part]
    assert lookup(segment, rows).found.all()
    assert not lookup(segment, random_rows(5000, seed=1)).found.any()


@pytest.mark.parametrize("cut_at", [0, 1, 4096, 50_000])
def test_a_cut_or_missing_file_fails_its_range(tmp_path: Path, cut_at: int) -> None:
    rows = by_id(random_rows(20_000))
    path = tmp_path / "s"
    record = write(path, rows)
    path.write_bytes(path.read_bytes()[:cut_at])
    segment = Segment(path, record, STORE)
    assert f"{cut_at} bytes" in (segment.damage or "")
    assert lookup(segment, rows).failed.all()
    path.unlink()
    assert "missing" in (Segment(path, record, STORE).damage or "")


def test_a_segment_file_of_another_store_is_refused(tmp_path: Path) -> None:
    rows = by_id(random_rows(3000))
    record = write(tmp_path / "s", rows)
    segment = Segment(tmp_path / "s", record, bytes(16))
    assert segment.damage is not None
    assert lookup(segment, rows).failed.all()


def test_a_run_is_cut_into_segments_over_disjoint_ranges(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    numbers = iter(range(1, 1000))
    files = SegmentFiles(tmp_path, STORE, lambda: next(numbers), segment_bytes_max=100_000)
    rows = by_id(random_rows(20_000))
    records = tuple(writer.seal() for writer in files.write(rows, filter_bits=10))
    assert len(records) > 3
    assert all(record.file_bytes <= 140_000 for record in records)
    run = Run.open(RunRecord(1, False, 0, records), files)
    view = View((), (run,))
    got = view.lookup(np.ascontiguousarray(rows[:, :2]), ColdReads())
    assert got.found.all()
    assert (merged_rows(view, 0, HASH_MAX) == rows).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 1 << 31}, {"rows": 0}, {"page_rows": 0}, {"page_rows": 1}, {"row_pages": 1 << 40},
        {"row_bytes": 8}, {"range_bits": 13}, {"range_first": 7}, {"range_count": 1 << 31},
        {"directory_offset": 0}, {"directory_offset": (1 << 64) - 8}, {"buckets": 1 << 40},
        {"filter_offset": 1 << 40}, {"filter_blocks": 1 << 40}, {"last": (0, 0)}, {"width": [255] * 8},
        {"shift": [64] * 8}, {"page_bytes": 1}, {"magic": b"KVMSEG"},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_damage_and_is_not_used(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    rows = by_id(random_rows(3000))
    write(tmp_path / "s", rows, filter_bits=10)
    segment = reheaded(tmp_path / "s", **fields)
    assert "contradicts itself" in (segment.damage or "")
    assert not lookup(segment, rows).found.any()


@pytest.mark.parametrize("place", ["first range", "a bucket", "last bucket"])
def test_a_bucket_directory_pointing_outside_its_segment_is_rebuilt(tmp_path: Path, place: str) -> None:
    rows = by_id(random_rows(3000))
    record = write(tmp_path / "s", rows)
    header = Segment(tmp_path / "s", record, STORE).header
    data = bytearray((tmp_path / "s").read_bytes())
    start, buckets = int(header["directory_offset"]), 4 * (int(header["range_count"]) + 1)
    end = buckets + 4 * int(header["buckets"])
    at = start + {"first range": 0, "a bucket": buckets + 40, "last bucket": end}[place]
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "s").write_bytes(data)
    section = bytes(data[start : start + round_up(end + 4)])
    segment = reheaded(tmp_path / "s", directory_checksum=xxhash.xxh3_64_intdigest(section))
    assert segment.verify_tables() == ["bucket directory"]
    assert lookup(segment, rows).found.all()
    assert (merged_rows(view_of(segment), 0, HASH_MAX) == rows).all()


def test_an_empty_file_is_damage(tmp_path: Path) -> None:
    record = SegmentRecord(7, 1, 0, 0, 0, 1, 1, 1)
    (tmp_path / "s").touch()
    assert "0 bytes" in (Segment(tmp_path / "s", record, STORE).damage or "")
