"""What a node remembers, and that damage to it is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvmeta.errors import CorruptionError, FormatError
from kvmeta_server.cluster.cluster_map import Member, found
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.node_state import Identity, NodeState


def test_a_nodes_state_survives_a_restart(tmp_path: Path) -> None:
    state = NodeState(FileDisk(tmp_path / "node"))
    assert state.identity is None
    assert state.map() is None
    state.set_identity(Identity("00", "prod", "n1", 5))
    state.reserve(1 << 40)
    held = found("prod", bytes(16), Member(0, "n1", "h:1"), partitions=8)
    state.set_map(held)
    state.set_copied(np.arange(8, dtype=np.uint64))
    state.add_leftover(np.arange(8) < 3)
    state.clear_leftover(np.arange(8) < 1)
    ranges = state.ranges("default", 8)
    ranges.promise(np.array([1, 2]), 100)
    ranges.promise(np.array([2]), 50)
    ranges.agree(np.array([2]), 90)
    again = NodeState(FileDisk(tmp_path / "node"))
    assert again.identity == Identity("00", "prod", "n1", 5, 1 << 40)
    remembered = again.map()
    assert remembered is not None
    assert remembered.encode() == held.encode()
    assert again.copied(8).tolist() == list(range(8))
    assert again.leftover(8).tolist() == [False, True, True, *[False] * 5]
    assert again.ranges("default", 8).promised.tolist() == [0, 100, 100, 0, 0, 0, 0, 0]
    assert again.ranges("default", 8).agreed[2] == 90
    again.forget("default")
    assert not NodeState(FileDisk(tmp_path / "node")).ranges("default", 8).promised.any()


@pytest.mark.parametrize("name", ["NODE", "MAP", "COPIED", "ranges/default"])
def test_a_flipped_byte_in_any_file_is_noticed(tmp_path: Path, name: str) -> None:
    state = NodeState(FileDisk(tmp_path / "node"))
    state.set_identity(Identity("00", "prod", "n1", 5))
    state.set_map(found("prod", bytes(16), Member(0, "n1", "h:1"), partitions=2))
    state.set_copied(np.zeros(2, np.uint64))
    state.ranges("default", 2).promise(np.array([0]), 1)
    path = tmp_path / "node" / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CorruptionError, match="is damaged"):
            read_all(tmp_path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptionError):
        read_all(tmp_path)


def test_copied_positions_for_another_partition_count_are_refused(tmp_path: Path) -> None:
    NodeState(FileDisk(tmp_path / "node")).set_copied(np.zeros(4, np.uint64))
    with pytest.raises(FormatError, match="expected 8"):
        NodeState(FileDisk(tmp_path / "node")).copied(8)


def read_all(path: Path) -> None:
    state = NodeState(FileDisk(path / "node"))
    state.map()
    state.copied(2)
    state.ranges("default", 2)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"slot": "x"}', b"\xff", b"[" * 100_000], ids=repr)
def test_an_intact_node_file_without_an_identity_is_damage(tmp_path: Path, raw: bytes) -> None:
    NodeState(FileDisk(tmp_path / "node"))
    (tmp_path / "node" / "NODE").write_bytes(raw + xxhash.xxh3_64_digest(raw))
    with pytest.raises(CorruptionError, match="is damaged"):
        NodeState(FileDisk(tmp_path / "node"))


def test_leftovers_for_another_partition_count_are_refused(tmp_path: Path) -> None:
    NodeState(FileDisk(tmp_path / "node")).add_leftover(np.arange(4) < 2)
    with pytest.raises(FormatError, match="expected 8"):
        NodeState(FileDisk(tmp_path / "node")).leftover(8)
