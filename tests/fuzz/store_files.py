"""Targets: the files of a store. Segments, WAL records, the manifest's rows, and the three small files."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine import mark, wal
from kvmeta.engine.manifest import (
    Change,
    DatasetRecord,
    Manifest,
    MergeRecord,
    RunRecord,
    TreeRecord,
)
from kvmeta.engine.mark import SLOT_BYTES, Mark, MarkFile
from kvmeta.engine.page import PAGE_BYTES, PAYLOAD_BYTES, Bounds
from kvmeta.engine.recovery import Identity, read_identity
from kvmeta.engine.run import Run
from kvmeta.engine.segment import Segment
from kvmeta.engine.segment_header import HEADER, SegmentRecord, file_seed, header_page, record_of, round_up
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.view import ColdReads, View
from kvmeta.engine.wal import RECORD, WAL_START, Position
from kvmeta.engine.window import HASH_MAX, merged_rows
from kvmeta.protocol.volume_pages import VolumePages
from kvmeta.volumes import VolumeRow
from tests.fuzz import checked_memory
from tests.fuzz.target import Target, scratch
from tests.unit.engine.rows import by_id, random_rows

STORE = bytes(range(16))
_ROWS_LOOKED_UP = 12
_PATH = Path("store")


def _segment_seeds() -> list[bytes]:
    def written(rows: NDArray[np.uint64], filter_bits: int) -> bytes:
        path = scratch() / "seed"
        path.unlink(missing_ok=True)
        writer = SegmentWriter(path, 7, STORE, Bounds.of(rows), filter_bits=filter_bits)
        writer.append(rows)
        writer.finish()
        writer.seal(0)
        return path.read_bytes()

    few, many = by_id(random_rows(3)), by_id(random_rows(400))
    many[:, 2] += np.arange(400, dtype=np.uint64) << np.uint64(23)
    alike = random_rows(200, seed=2)
    alike[:, 0] = alike[:, 0] % np.uint64(5) << np.uint64(50)
    return [written(few, 0), written(few, 10), written(many, 10), written(by_id(alike), 0)]


def _decode_segment(data: bytes) -> Any:
    """Open a segment as its own header says it is, verify it, look up its rows and others, scan it."""
    checked_memory.forget()
    path = scratch() / "segment"
    path.write_bytes(data)
    head = np.frombuffer(data[:PAGE_BYTES].ljust(PAGE_BYTES, b"\0"), HEADER, 1)[0]
    record = record_of(head)
    segment = Segment(path, record, STORE, known_damage=(0,))
    segment.verify_tables()
    pages = len(segment.states)
    segment.verify(0, pages)
    for page in {0, pages - 1}:
        segment.page_range(page)
    segment.will_need(0, record.rows)
    assert segment.bounds.low is not None
    assert segment.tables_bytes >= 0
    view = View((), (Run(RunRecord(1, True, 0, (record,)), (segment,)),))
    words = np.frombuffer(data[PAGE_BYTES : 2 * PAGE_BYTES].ljust(PAGE_BYTES, b"\0"), np.uint64)
    ends = [[half >> 64, half & HASH_MAX] for half in (record.first, record.last)]
    mixed = np.array([*ends, *words[: 2 * _ROWS_LOOKED_UP].reshape(-1, 2)], np.uint64)
    mixed[2:, 0] += head["base"][0]
    found = view.lookup(mixed, ColdReads())
    return found, merged_rows(view, 0, HASH_MAX)


def _seal_segment(data: bytes) -> bytes:
    """Make every checksum of a segment right, and the header say how long the file is."""
    pages = max(2, len(data) // PAGE_BYTES)
    raw = bytearray(data[: pages * PAGE_BYTES].ljust(pages * PAGE_BYTES, b"\0"))
    head = np.frombuffer(bytes(raw[: HEADER.itemsize]), HEADER, 1)[0].copy()
    head["store"], head["file_bytes"] = np.void(STORE), len(raw)
    seed = np.uint64(file_seed(STORE, int(head["number"])))
    directory = 4 * (int(head["range_count"]) + int(head["buckets"]) + 2)
    for name, size in (("directory", directory), ("filter", int(head["filter_blocks"]) * 64)):
        start = int(head[f"{name}_offset"])
        section = raw[start : start + round_up(size)] if start < len(raw) else b""
        head[f"{name}_checksum"] = xxhash.xxh3_64_intdigest(bytes(section))
    for page in range(1, min(pages - 1, int(head["row_pages"]) + 1)):
        start = page * PAGE_BYTES
        raw[start : start + PAGE_BYTES] = _page(bytes(raw[start : start + PAYLOAD_BYTES]), seed, page)
    raw[:PAGE_BYTES] = header_page(head, seed, 0)
    raw[-PAGE_BYTES:] = header_page(head, seed, pages - 1)
    return bytes(raw)


def _page(payload: bytes, seed: np.uint64, page: int) -> bytes:
    from kvmeta.engine.kernels.hashing import finalise

    checksum = xxhash.xxh64_intdigest(payload, int(finalise(seed + np.uint64(page))))
    return payload + checksum.to_bytes(8, "little")


def _wal_seeds() -> list[bytes]:
    return [
        wal.encode(WAL_START, 1, kind, random_rows(rows))[1]
        for kind in (wal.PUT, wal.DELETE, wal.RELOCATE)
        for rows in (1, 3, 100)
    ]


def _seal_record(data: bytes) -> bytes:
    if len(data) < RECORD.itemsize:
        return data
    header = np.frombuffer(data, RECORD, 1)[0].copy()
    header["previous"] = header["checksum"] = 0
    digest = xxhash.xxh3_64((1).to_bytes(8, "little") + header.tobytes())
    digest.update(data[RECORD.itemsize :])
    header["checksum"] = digest.intdigest()
    return header.tobytes() + data[RECORD.itemsize :]


def _manifest_seeds() -> list[bytes]:
    segments = tuple(SegmentRecord(n, 100, 3, 4096 * 9, n << 120, (n + 1) << 119, 1, 9) for n in (1, 2))
    run = RunRecord(3, True, 0, segments, {1: (0, 4), 2: ()})
    merge = MergeRecord((3, 4), 5, False, 1 << 60, drop=((1, 2),))
    full = Change(
        datasets={1: DatasetRecord(1, "default"), 2: DatasetRecord(2, "other", 60.0, True)},
        trees={1: TreeRecord(7, (run, RunRecord(4, False, 1 << 60, ())), (merge,)), 2: TreeRecord()},
        volume_pages=VolumePages().pages_with(
            [VolumeRow(1, "file:///a.tar", "a"), VolumeRow(2, "x://y", "y", "offline", 9)]
        ),
        next_volume=3,
        anchor=Position(7, 1234),
    )
    seeds = []
    for change in (Change(), Change(datasets={1: DatasetRecord(1, "default")}), full):
        manifest = Manifest()
        manifest.accept(manifest.prepare(change))
        seeds.append(b"\n".join(key + b"=" + value for key, value in manifest.rows.items()))
    return seeds


def _manifest_rows(data: bytes) -> dict[bytes, bytes]:
    """Return the manifest's rows of an input: lines of KEY=VALUE."""
    parts = [line.partition(b"=") for line in data.split(b"\n")]
    return {key: value for key, _, value in parts}


def _seal_manifest(data: bytes) -> bytes:
    rows = _manifest_rows(data)
    head: Any = None
    with suppress(ValueError, RecursionError):
        head = json.loads(rows.get(b"head", b""))
    if isinstance(head, dict):
        others = [(key, value) for key, value in rows.items() if key != b"head"]
        total = sum(xxhash.xxh3_64_intdigest(key + b"\0" + value) for key, value in others)
        rows[b"head"] = json.dumps({**head, "digest": total % (1 << 64)}).encode()
    return b"\n".join(key + b"=" + value for key, value in rows.items())


def _small_seeds() -> list[bytes]:
    store = scratch() / "seeds"
    (store / "log").mkdir(parents=True, exist_ok=True)
    (store / "log" / "000001.sst").write_bytes(b"rows")
    file = MarkFile(store, STORE, 0)
    marks = []
    for clean in (False, True):
        file.write_durably(Mark(3, 4, 5, 6, clean, 7))
        marks.append((store / "MARK").read_bytes())
    file.write(Mark(9, 9, 9, 9))
    file.close()
    mark.seal(store)
    return [
        *(b"M" + each for each in [*marks, (store / "MARK").read_bytes()]),
        b"S" + (store / "SEAL").read_bytes(),
        b"K" + Identity(STORE).encode(),
    ]


def _decode_small(data: bytes) -> Any:
    """Decode MARK, SEAL or KVMETA, as the first byte says."""
    store = scratch() / "small"
    (store / "log").mkdir(parents=True, exist_ok=True)
    (store / "log" / "000001.sst").write_bytes(b"rows")
    kind, raw = data[:1], data[1:]
    if kind == b"M":
        (store / "MARK").write_bytes(raw)
        return mark.read(store, STORE)
    if kind == b"S":
        (store / "SEAL").write_bytes(raw)
        return mark.check_seal(store, Mark(seal=xxhash.xxh3_64_intdigest(raw)))
    (store / "KVMETA").write_bytes(raw)
    return read_identity(store)


def _seal_small(data: bytes) -> bytes:
    if data[:1] != b"M":
        return data
    raw = data[1:].ljust(2 * SLOT_BYTES, b"\0")
    slots = [raw[i : j - 8] for i, j in pairwise(range(0, 2 * SLOT_BYTES + 1, SLOT_BYTES))]
    return b"M" + b"".join(slot + xxhash.xxh3_64_intdigest(slot).to_bytes(8, "little") for slot in slots)


TARGETS = (
    Target("segment", _segment_seeds, _decode_segment, _seal_segment, replays=600),
    Target("wal", _wal_seeds, lambda data: wal.decode(1, WAL_START, data, _PATH), _seal_record),
    Target(
        "manifest", _manifest_seeds, lambda data: Manifest.read(_manifest_rows(data), _PATH), _seal_manifest
    ),
    Target("small_files", _small_seeds, _decode_small, _seal_small),
)
