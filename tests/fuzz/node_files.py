"""Targets: what a node of a cluster reads. The cluster map, hints, and the files below node/."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import xxhash

from kvmeta.protocol.volume_pages import VolumePages
from kvmeta.volumes import VolumeRow
from kvmeta_server.cluster.cluster_map import Member, decode, found
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.node_state import Identity, NodeState
from kvmeta_server.cluster.tables import Tables
from tests.fuzz.target import Target, scratch
from tests.unit.engine.rows import random_rows

PARTITIONS = 8
_FILES = {
    b"N": "NODE",
    b"M": "MAP",
    b"T": "TABLES",
    b"V": "volumes/0",
    b"C": "COPIED",
    b"L": "LEFTOVER",
    b"R": "ranges/default",
}
_HINT_HEAD = struct.Struct("<IIQ")
_HINT_ROW_BYTES = 48


def _maps() -> list[bytes]:
    one = found("prod", bytes(16), Member(0, "n1", "h:1", store_id="00"), partitions=PARTITIONS)
    three = one.joined(Member(0, "n2", "h:2", "zone")).joined(Member(0, "n3", "h:3", weight=2.0))
    return [each.encode() for each in (one, three, three.switched(range(PARTITIONS)))]


def _decode_map(data: bytes) -> Any:
    """Decode a map and ask it what nodes ask."""
    held = decode(data)
    held.encode()
    held.partition_of(np.array([0, 1 << 63, (1 << 64) - 1], np.uint64))
    held.stretch(held.partitions - 1)
    for slot in (0, 1, 1023):
        held.read_alone(slot)
        held.held_by(slot)
        held.incoming(slot)
    return held.write_quorums, held.alive, held.by_slot


def _hints() -> list[bytes]:
    folder = scratch() / "seed-hints" / "hints"
    folder.mkdir(parents=True, exist_ok=True)
    files = HintFiles(FileDisk(folder.parent))
    files.add(1, "default", random_rows(2))
    first = (folder / "1").read_bytes()
    files.add(1, "other@2", random_rows(30, seed=1))
    both = (folder / "1").read_bytes()
    files.done(1, len(both))
    return [b"", first, both]


def _decode_hints(data: bytes) -> Any:
    """Recover and read the file of hints `data`: what is left of it are whole hints."""
    folder = scratch() / "fuzzed-hints" / "hints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "5").write_bytes(data)
    files = HintFiles(FileDisk(folder.parent))
    hints = list(files.read(5))
    assert sum(len(hint.rows) for hint in hints) == sum(files.waiting().values())
    assert (folder / "5").stat().st_size == (hints[-1].end if hints else 0)
    return hints


def _seal_hints(data: bytes) -> bytes:
    """Make the checksum of every record right, as far as the sizes lead."""
    out, at = bytearray(data), 0
    while len(head := bytes(out[at : at + _HINT_HEAD.size])) == _HINT_HEAD.size:
        name_bytes, rows, _ = _HINT_HEAD.unpack(head)
        start = at + _HINT_HEAD.size
        rest = bytes(out[start : start + name_bytes + rows * _HINT_ROW_BYTES])
        out[at:start] = _HINT_HEAD.pack(name_bytes, rows, xxhash.xxh3_64_intdigest(rest))
        at = start + len(rest)
    return bytes(out)


def _states() -> list[bytes]:
    disk = FileDisk(scratch() / "seed-node")
    state = NodeState(disk)
    state.set_identity(Identity("00", "prod", "n1", 5))
    state.set_map(found("prod", bytes(16), Member(0, "n1", "h:1"), partitions=PARTITIONS))
    state.set_tables(Tables(bytes(16)).with_dataset("x", ttl_s=1.5, bottom_filter=False).with_volumes(2))
    rows = [VolumeRow(1, "file:///a.tar", "a"), VolumeRow(2, "s3://b", "b", "retired", 7, "zstd")]
    for page, raw in VolumePages().pages_with(rows).items():
        state.set_volumes(page, raw)
    state.set_copied(np.arange(PARTITIONS, dtype=np.uint64))
    state.add_leftover(np.arange(PARTITIONS) < 3)
    state.ranges("default", PARTITIONS).promise(np.array([1, 2]), 100)
    return [kind + (disk.read(name) or b"") for kind, name in _FILES.items()]


def _decode_state(data: bytes) -> Any:
    """Read one of a node's files, by the first byte."""
    kind, raw = data[:1], data[1:]
    name = _FILES.get(kind, "NODE")
    path = scratch() / "fuzzed"
    file = path / "node" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)
    try:
        state = NodeState(FileDisk(path / "node"))
        return (
            state.identity, state.map(), state.tables(), VolumePages(state.volumes()),
            state.copied(PARTITIONS), state.leftover(PARTITIONS),
            state.ranges("default", PARTITIONS).promised,
        )  # fmt: skip
    finally:
        file.unlink()


def _seal_state(data: bytes) -> bytes:
    raw = data[1:-8]
    return data[:1] + raw + xxhash.xxh3_64_digest(raw)


TARGETS = (
    Target("cluster_map", _maps, _decode_map),
    Target("hints", _hints, _decode_hints, _seal_hints),
    Target("node_files", _states, _decode_state, _seal_state),
)
