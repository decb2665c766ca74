"""Routing: IDs to their owners, around who is down, by the newest map."""

from __future__ import annotations

import numpy as np
import pytest

import kvmeta
from kvmeta import mixing
from kvmeta.client.options import addresses_of
from kvmeta.client.routing import DOWN_S, Route, Router
from kvmeta.errors import InputError
from kvmeta.protocol.messages import ColumnMessage
from kvmeta.v1 import kvmeta_pb2 as pb

IDS = kvmeta.ids_from_ints(np.arange(1000, dtype=np.uint64))


def reply(owners: np.ndarray, epoch: int = 3, away: tuple[int, ...] = ()) -> bytes:
    nodes = [pb.Node(slot=s, name=f"n{s}", address=f"h{s}:1", live=s not in away) for s in range(4)]
    head = pb.GetMapResponse(
        epoch=epoch, partitions=len(owners), replicas=owners.shape[1], write_quorum=2, nodes=nodes
    )
    return ColumnMessage.of(head, pb.COMPRESSION_UNSPECIFIED, owners=owners.astype("<u2")).SerializeToString()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def router(owners: np.ndarray, clock: Clock | None = None, **named: object) -> Router:
    made = Router(("seed:1",), clock or Clock())
    made.describe(3, mixing.DEFAULT_SEED)
    made.take(reply(owners, **named))  # type: ignore[arg-type]
    return made


OWNERS = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]])


def test_each_id_goes_to_the_first_owner_of_its_partition() -> None:
    partitions = mixing.mix(IDS)[:, 0] >> np.uint64(62)
    seen = np.zeros(len(IDS), np.int64)
    for addresses, rows in router(OWNERS).split(IDS):
        assert rows is not None
        seen[rows] += 1
        slot = int(addresses[0][1])
        assert (OWNERS[partitions[rows].astype(int), 0] == slot).all()
        assert {"seed:1", "h0:1", "h1:1", "h2:1", "h3:1"} == set(addresses)
    assert (seen == 1).all()


def test_split_rows_keep_their_order() -> None:
    for _, rows in router(OWNERS).split(IDS):
        assert rows is not None
        assert (np.diff(rows) > 0).all()


def test_a_server_that_did_not_answer_is_skipped_for_a_while() -> None:
    clock = Clock()
    made = router(OWNERS, clock)
    made.missed("h1:1")
    firsts = [addresses[0] for addresses, _ in made.split(IDS)]
    assert "h1:1" not in firsts
    assert all(made.addresses()[-1] == "h1:1" for _ in range(2))
    assert made.needs_map
    clock.now += DOWN_S + 1
    assert "h1:1" in [addresses[0] for addresses, _ in made.split(IDS)]


def test_a_node_that_others_report_away_is_skipped() -> None:
    made = router(OWNERS, away=(0, 1))
    assert {addresses[0] for addresses, _ in made.split(IDS)} == {"h2:1", "h3:1"}


def test_a_single_owner_gets_the_unsplit_batch() -> None:
    ((addresses, rows),) = router(np.full((8, 1), 2)).split(IDS)
    assert addresses[0] == "h2:1"
    assert rows is None


def test_a_single_partition_works() -> None:
    ((addresses, rows),) = router(np.array([[3, 65535]])).split(IDS)
    assert (addresses[0], rows) == ("h3:1", None)


def test_a_newer_epoch_needs_a_new_map_and_older_maps_are_ignored() -> None:
    made = router(OWNERS)
    assert not made.needs_map
    made.saw(2)
    assert not made.needs_map
    made.saw(9)
    assert made.needs_map
    made.take(reply(OWNERS[:2], epoch=9))
    assert not made.needs_map
    made.take(reply(OWNERS, epoch=4))
    assert made.route is not None
    assert len(made.route.owners) == 2


def test_calls_without_a_map_go_to_the_servers_the_caller_named() -> None:
    made = Router(("a:1", "b:1"))
    made.describe(0, 0)
    assert not made.needs_map
    assert list(made.split(IDS)) == [(("a:1", "b:1"), None)]


@pytest.mark.parametrize("owners", [np.zeros((3, 1)), np.zeros((0, 1))])
def test_a_malformed_map_is_refused(owners: np.ndarray) -> None:
    with pytest.raises(InputError):
        Route.of(reply(owners))


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        ("kvmeta://a", ("a:7400",)),
        ("kvmeta://a:1,b", ("a:1", "b:7400")),
        ("kvmeta://[::1]:5,b:2,b:2/", ("[::1]:5", "b:2")),
    ],
)
def test_a_target_can_name_several_servers(target: str, addresses: tuple[str, ...]) -> None:
    assert addresses_of(target) == addresses


@pytest.mark.parametrize("target", ["kvmeta://a,,b", "kvmeta://a,b/x", "kvmeta://a:x,b", "http://a,b"])
def test_malformed_targets_are_refused(target: str) -> None:
    with pytest.raises(InputError):
        addresses_of(target)
