"""The cluster map: its steps, its quorums, its bytes."""

from __future__ import annotations

import base64
import json
from typing import Any

import lz4.block
import numpy as np
import pytest

from kvmeta.errors import CorruptionError, InputError, NotFoundError
from kvmeta_server.cluster.cluster_map import (
    COPYING,
    STABLE,
    SWITCHED,
    ClusterMap,
    Member,
    copies,
    decode,
    found,
)
from kvmeta_server.cluster.placement import NOBODY


def node(name: str, zone: str = "") -> Member:
    return Member(0, name, f"{name}:7400", zone)


def of_one_block(values: bytes) -> str:
    return base64.b64encode(lz4.block.compress(values)).decode()


def of_nodes(count: int, partitions: int = 64) -> ClusterMap:
    """Return a settled map of some nodes."""
    held = found("test", bytes(16), node("n0"), partitions=partitions)
    for number in range(1, count):
        held = settled(held.joined(node(f"n{number}")))
    return held


def settled(held: ClusterMap) -> ClusterMap:
    everything = range(held.partitions)
    return held.switched(everything).finished(everything)


def test_a_founded_cluster_is_one_node_that_owns_everything() -> None:
    held = of_nodes(1)
    assert held.epoch == 1
    assert (held.owners[:, 0] == 0).all()
    assert (held.owners[:, 1:] == NOBODY).all()
    assert (held.read_quorum == 1).all()
    assert held.write_quorums[0].tolist() == [1] * 64


def test_quorums_follow_the_owners_there_are() -> None:
    assert (of_nodes(2).write_quorums[0] == 2).all()
    assert (of_nodes(2).read_quorum == 1).all()
    assert (of_nodes(3).write_quorums[0] == 2).all()
    assert (of_nodes(3).read_quorum == 2).all()


def test_a_move_copies_switches_and_finishes_in_order() -> None:
    before = of_nodes(3)
    joining = before.joined(node("n3"))
    moving = joining.moving
    assert 0 < moving.sum() <= 64
    assert (joining.phase[moving] == COPYING).all()
    assert (joining.owners == before.owners).all()
    assert (joining.readers == before.owners).all()
    assert (joining.write_quorums[1][moving] == 2).all()
    assert (joining.write_quorums[1][~moving] == 0).all()
    assert joining.incoming(3).sum() == copies(joining)
    assert (joining.changed[moving] == joining.epoch).all()
    assert (joining.changed[~moving] == before.changed[~moving]).all()
    some = np.flatnonzero(moving)[:5]
    switched = joining.switched(some.tolist())
    assert (switched.phase[some] == SWITCHED).all()
    assert (switched.readers[some] == joining.targets[some]).all()
    assert switched.epoch == joining.epoch + 1
    finished = switched.finished(some.tolist())
    assert (finished.phase[some] == STABLE).all()
    assert (finished.owners[some] == joining.targets[some]).all()
    assert finished.moving.sum() == moving.sum() - 5
    assert not settled(finished).moving.any()


def test_a_step_skips_partitions_in_another_phase() -> None:
    held = of_nodes(2)
    assert not held.switched(range(64)).moving.any()
    joining = held.joined(node("n2"))
    assert (joining.finished(range(64)).owners == held.owners).all()


def test_a_moves_targets_may_change_while_copying_but_not_after_switching() -> None:
    joining = of_nodes(3).joined(node("n3"))
    moving = np.flatnonzero(joining.moving).tolist()
    switched = joining.switched(moving[:3])
    drained = switched.with_member("n3", state="draining")
    assert (drained.phase[moving[:3]] == SWITCHED).all()
    assert (drained.targets[moving[:3]] == switched.targets[moving[:3]]).all()
    assert (drained.phase[moving[3:]] == STABLE).all()
    after = settled(settled(drained).replanned())
    assert [each.name for each in after.members] == ["n0", "n1", "n2"]


def test_a_drained_node_is_gone_when_it_owns_nothing() -> None:
    draining = of_nodes(4).with_member("n2", state="draining")
    assert [each.name for each in draining.members] == ["n0", "n1", "n2", "n3"]
    done = settled(draining)
    assert [each.name for each in done.members] == ["n0", "n1", "n3"]
    assert not (done.owners == 2).any()


def test_removing_a_node_that_owns_nothing_takes_effect_at_once() -> None:
    joining = of_nodes(3).joined(node("n3"))
    undone = joining.with_member("n3", state="removed")
    assert not undone.moving.any()
    assert [each.name for each in undone.members] == ["n0", "n1", "n2"]


def test_the_owners_left_after_forced_removals_form_the_quorum() -> None:
    held = of_nodes(4).with_member("n1", state="removed")
    assert (held.read_quorum[(held.owners == 1).any(axis=1)] == 2).all()
    both = held.with_member("n2", state="removed")
    lost = ((both.owners == 1) | (both.owners == 2)).sum(axis=1) == 2
    assert (both.read_quorum[lost] == 1).all()
    assert (both.write_quorums[0][lost] == 1).all()


def test_slots_are_not_given_again_soon() -> None:
    held = settled(of_nodes(3).with_member("n2", state="draining"))
    assert held.joined(node("n9")).member("n9").slot == 3


def test_two_members_cannot_share_a_name() -> None:
    with pytest.raises(InputError, match="already"):
        of_nodes(2).joined(node("n1"))
    with pytest.raises(NotFoundError, match="it has: n0, n1"):
        of_nodes(2).member("n7")


@pytest.mark.parametrize(("replicas", "quorum"), [(3, 1), (3, 4), (2, 1), (4, 2)])
def test_quorums_that_do_not_overlap_are_refused(replicas: int, quorum: int) -> None:
    with pytest.raises(InputError, match="more than half"):
        found("test", bytes(16), node("a"), replicas=replicas, write_quorum=quorum)


def test_the_top_bits_of_a_mixed_id_give_its_partition() -> None:
    held = of_nodes(1, partitions=16)
    high = np.array([0, (1 << 60) - 1, 1 << 60, (1 << 64) - 1], np.uint64)
    assert held.partition_of(high).tolist() == [0, 0, 1, 15]
    assert held.stretch(1) == (1 << 60, (2 << 60) - 1)
    assert of_nodes(1, partitions=1).partition_of(high).tolist() == [0] * 4


def test_a_map_survives_encoding_and_decoding() -> None:
    held = of_nodes(3).joined(node("n3", "zone")).switched([0, 1, 2])
    again = decode(held.encode())
    assert again.encode() == held.encode()
    assert again.members == held.members
    assert (again.targets == held.targets).all()
    assert (again.changed == held.changed).all()


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format": 99}', b"\xff"])
def test_bytes_that_do_not_encode_a_map_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptionError, match="not a cluster map"):
        decode(raw)


@pytest.mark.parametrize(
    "fields",
    [
        {"partitions": -1}, {"partitions": 63}, {"partitions": "64"}, {"replicas": 0}, {"write_quorum": 9},
        {"epoch": "x"}, {"epoch": -1}, {"nodes": {}}, {"nodes": [{"slot": "a"}]}, {"seed": "-1"},
        {"phase": of_one_block(b"\x03" * 64)}, {"changed": of_one_block(bytes(8))},
        {"owners": base64.b64encode((1 << 31).to_bytes(4, "little") + b"\0").decode()},
    ],
    ids=str,
)  # fmt: skip
def test_maps_with_wrong_fields_are_refused(fields: dict[str, Any]) -> None:
    raw = json.dumps({**json.loads(of_nodes(1).encode()), **fields}).encode()
    with pytest.raises(CorruptionError, match="not a cluster map"):
        decode(raw)


def test_endlessly_nested_or_foreign_json_is_refused_as_a_map() -> None:
    for raw in (b"[" * 100_000, b'{"format":1,"x":' + b"[" * 100_000, b"\xff", b"[]", b"5"):
        with pytest.raises(CorruptionError, match="not a cluster map"):
            decode(raw)
