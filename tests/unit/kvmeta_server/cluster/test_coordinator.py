"""The coordinator over real replicas: quorums, stamping again, fences, repair, decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmeta.protocol.codes import Outcome, State
from kvmeta.version import MS_SHIFT, TOMBSTONE
from kvmeta_server.cluster.cluster_map import Member
from kvmeta_server.cluster.rows import Applied, Bound
from kvmeta_server.cluster.seams import PeerError
from tests.patience import HANG_S, until
from tests.unit.kvmeta_server.cluster.replicas import Replicas, agree, rows_of

N = 300
PLACE = [0, 1, 3, 4, 5]
"""The columns of an ID and its location."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Replicas]:
    made = Replicas(tmp_path)
    yield made
    made.close()


def write(replicas: Replicas, rows: np.ndarray, *, delete: bool = False) -> np.ndarray:
    async def work() -> np.ndarray:
        written = await replicas.coordinator.write("default", rows, delete=delete)
        await asyncio.gather(*replicas.coordinator.writer._behind)
        return written.acknowledged

    return replicas.run(work())


def read(replicas: Replicas, rows: np.ndarray, *, fast: bool = False) -> tuple[np.ndarray, np.ndarray]:
    got = replicas.run(replicas.coordinator.read("default", np.ascontiguousarray(rows[:, :2]), fast=fast))
    return got.states, got.rows


def decide(replicas: Replicas, operation: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outcomes, held, _ = replicas.run(replicas.coordinator.decide("default", operation, rows))
    return outcomes, held


def test_a_write_reaches_all_owners_and_is_read_back(three: Replicas) -> None:
    rows = rows_of(N)
    assert write(three, rows).all()
    assert three.holding(rows) == [N, N, N]
    states, got = read(three, rows)
    assert (states == State.ANSWERED).all()
    assert (got[:, PLACE] == rows[:, PLACE]).all()
    assert three.calls.count("fetch") == 1
    assert three.calls.count("versions") == 2  # half of the IDs at each of the two others


def test_two_of_three_are_enough_and_the_third_gets_a_hint(three: Replicas) -> None:
    three.down = {2}
    rows = rows_of(N)
    assert write(three, rows).all()
    assert three.hints.rows == {2: N}
    states, got = read(three, rows)
    assert (states == State.ANSWERED).all()
    assert (got[:, PLACE] == rows[:, PLACE]).all()


def test_one_of_three_replicas_is_not_enough_for_reads_or_writes(three: Replicas) -> None:
    three.down = {1, 2}
    rows = rows_of(N)
    assert not write(three, rows).any()
    states, _ = read(three, rows)
    assert (states == State.UNAVAILABLE).all()


def test_a_write_that_meets_a_newer_version_is_stamped_above_it(three: Replicas) -> None:
    """A coordinator whose clock is behind: without stamping again, its acknowledged write would be lost."""
    ahead = rows_of(N)
    ahead[:, 2] = three.stores[1].engine.clock.stamp() + (20_000 << MS_SHIFT)
    for slot in (1, 2):
        three.replicas[slot].apply("default", 0, ahead)
    rows = rows_of(N, value=2)
    assert write(three, rows).all()
    _, got = read(three, rows)
    assert (got[:, 3] == 2).all()
    assert (got[:, 2] > ahead[:, 2]).all()


def test_a_batch_fails_only_for_ids_in_dead_partitions(tmp_path: Path) -> None:
    replicas = Replicas(tmp_path, 3, replicas=1, write_quorum=1)
    replicas.down = {2}
    rows = rows_of(N)
    partitions = replicas.maps.current.partition_of(rows[:, 0])
    dead = replicas.maps.current.owners[partitions, 0] == 2
    assert 0 < dead.sum() < N
    assert (write(replicas, rows) == ~dead).all()
    states, _ = read(replicas, rows)
    assert ((states == State.UNAVAILABLE) == dead).all()
    replicas.close()


def test_a_read_copies_a_lone_row_to_w_replicas_before_answering(three: Replicas) -> None:
    rows = rows_of(N)
    rows[:, 2] = three.stores[0].engine.clock.stamp()
    three.replicas[0].apply("default", 0, rows)
    states, got = read(three, rows)
    assert (states == State.ANSWERED).all()
    assert (got == rows).all()
    assert sum(held == N for held in three.holding(rows)) >= 2


def test_a_newer_row_at_one_replica_does_not_count_for_others(three: Replicas) -> None:
    rows, newer = rows_of(1), rows_of(1, value=2)
    rows[:, 2], newer[:, 2] = (clock.stamp() for clock in [three.stores[1].engine.clock] * 2)
    three.replicas[1].apply("default", 0, rows)
    three.replicas[2].apply("default", 0, newer)
    three.down = {0}
    assert three.run(three.coordinator.bring("default", rows)).all()  # one has it, one has something newer
    three.down = {0, 1}
    assert not three.run(three.coordinator.bring("default", rows)).any()


def test_a_read_can_repair_a_replica_despite_its_promise(
    three: Replicas,
) -> None:
    """It counted as something newer there: the read was answered, and the next one could miss it again."""
    rows = rows_of(N)
    rows[:, 2] = three.stores[0].engine.clock.stamp()
    three.replicas[0].apply("default", 0, rows)
    cut, everywhere = three.stores[1].engine.clock.stamp(), np.arange(three.maps.current.partitions)
    three.replicas[1].state.ranges("default", len(everywhere)).promise(everywhere, cut)
    three.down = {2}
    states, got = read(three, rows)
    assert (states == State.ANSWERED).all()
    assert (got == rows).all()
    assert three.holding(rows)[1] == N


def test_a_read_repairs_nothing_older_than_the_agreed_version(three: Replicas) -> None:
    """A late one: what it found was deleted, and its tombstone may be gone."""
    rows = rows_of(N)
    rows[:, 2] = three.stores[0].engine.clock.stamp()
    agreed, everywhere = three.stores[1].engine.clock.stamp(), range(three.maps.current.partitions)
    for slot in (1, 2):
        agree(three.replicas[slot], everywhere, agreed)
    assert not three.run(three.coordinator.bring("default", rows, Bound.AGREED)).any()
    assert three.holding(rows)[1:] == [0, 0]
    rows[:, 2] |= np.uint64(TOMBSTONE)  # of which the others agreed, too, and have dropped it since
    assert three.run(three.coordinator.bring("default", rows, Bound.AGREED)).all()


def test_an_attempt_that_other_replicas_refuse_does_not_count(three: Replicas) -> None:
    rows = rows_of(1)
    rows[:, 2] = three.stores[0].engine.clock.stamp()
    three.replicas[0].apply("default", 0, rows)
    promised = three.stores[1].engine.clock.stamp()
    everywhere = np.arange(three.maps.current.partitions)
    for slot in (1, 2):
        three.replicas[slot].state.ranges("default", len(everywhere)).promise(everywhere, promised)
    assert not three.run(three.coordinator.decider._kept("default", rows, np.ones(1, np.bool_))).any()


def test_a_delete_that_one_replica_missed_is_not_undone_by_it(three: Replicas) -> None:
    rows = rows_of(N)
    write(three, rows)
    three.down = {1}
    write(three, rows_of(N), delete=True)
    three.down = {2}
    _, got = read(three, rows)
    assert (got[:, 2] & np.uint64(TOMBSTONE) != 0).all()


def test_fast_reads_ask_one_and_confirm_misses(three: Replicas) -> None:
    rows = rows_of(N)
    write(three, rows[: N // 2].copy())
    three.calls.clear()
    states, got = read(three, rows, fast=True)
    assert (states == State.ANSWERED).all()
    assert ((got[:, 2] != 0) == (np.arange(N) < N // 2)).all()
    assert three.calls == ["fetch", "fetch", "versions", "versions"]


# Epochs


def test_writes_planned_on_an_older_map_are_fenced(three: Replicas) -> None:
    older = three.maps.current
    three.adopt(older.joined(Member(0, "n3", "n3:1")))
    changed = three.replicas[0].map.moving
    rows = rows_of(N)
    mine = changed[older.partition_of(rows[:, 0])]
    assert mine.any()
    acknowledged = write(three, rows)
    assert (acknowledged == ~mine).all()
    states, _ = read(three, rows)
    assert ((states == State.UNAVAILABLE) == mine).all()


def test_an_acknowledgement_under_an_outdated_map_does_not_count(three: Replicas) -> None:
    older = three.maps.current
    newer = older.joined(Member(0, "n3", "n3:1"))
    seen = []

    async def work() -> None:
        rows = rows_of(N)
        rows[:, 2] = three.stores[0].engine.clock.stamp()
        apply = three.apply

        async def late(*arguments: object, **named: object) -> object:
            done = await apply(*arguments, **named)  # type: ignore[arg-type]
            three.maps.current = newer
            return done

        three.apply = late  # type: ignore[method-assign,assignment]
        acknowledged, *_ = await three.coordinator.writer.attempt("default", rows)
        seen.append((acknowledged, newer.moving[older.partition_of(rows[:, 0])]))

    three.run(work())
    ((acknowledged, moved),) = seen
    assert moved.any()
    assert (acknowledged == ~moved).all()


def test_while_a_partition_moves_a_write_needs_w_of_the_targets_too(tmp_path: Path) -> None:
    four = Replicas(tmp_path, 4)
    before = four.maps.current
    moving = before.with_member("n1", state="draining").with_member("n2", state="draining")
    four.adopt(moving)
    four.maps.current = moving
    rows = rows_of(N)
    owners, targets = (
        moving.owners[moving.partition_of(rows[:, 0])],
        moving.targets[moving.partition_of(rows[:, 0])],
    )
    four.down = {3}
    acknowledged = write(four, rows)
    enough = ((owners != 3) & (owners != 65535)).sum(axis=1) >= 2
    on_the_move = moving.moving[moving.partition_of(rows[:, 0])]
    left = ((targets != 3) & (targets != 65535)).sum(axis=1) >= np.minimum(2, (targets != 65535).sum(axis=1))
    assert (acknowledged == (enough & (~on_the_move | left))).all()
    assert not acknowledged.all()
    four.close()


def test_a_replica_confirms_a_map_only_after_older_calls_end(three: Replicas) -> None:
    import threading

    replica = three.replicas[0]
    newer = three.maps.current.joined(Member(0, "n3", "n3:1"))
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with replica._let_in():
            inside.set()
            go_on.wait(HANG_S)

    working = threading.Thread(target=slow)
    working.start()
    inside.wait(HANG_S)
    adopting = threading.Thread(target=replica.adopt, args=(newer,))
    adopting.start()
    until(lambda: replica._map is newer, "the map is never taken")
    adopting.join(0.2)
    assert adopting.is_alive()
    assert replica.persisted < newer.epoch
    go_on.set()
    adopting.join(HANG_S)
    working.join(HANG_S)
    assert replica.persisted == newer.epoch
    remembered = replica.state.map()
    assert remembered is not None
    assert remembered.epoch == newer.epoch


# Insert and relocate


def test_a_second_insert_finds_the_entry_of_the_first(three: Replicas) -> None:
    first, second = rows_of(N, value=1), rows_of(N, value=2)
    outcomes, held = decide(three, "insert", first)
    assert (outcomes == Outcome.TOOK_EFFECT).all()
    assert (held[:, 3] == 1).all()
    outcomes, held = decide(three, "insert", second)
    assert (outcomes == Outcome.EXISTS).all()
    assert (held[:, 3] == 1).all()
    write(three, rows_of(N), delete=True)
    assert (decide(three, "insert", second)[0] == Outcome.TOOK_EFFECT).all()


def test_a_relocate_takes_effect_only_on_unchanged_entries(three: Replicas) -> None:
    rows = rows_of(N)
    write(three, rows)
    moved = read(three, rows)[1]
    moved[:, 3] = 7
    half = moved.copy()
    half[: N // 2, 2] -= np.uint64(1 << 20)
    outcomes, _ = decide(three, "relocate", half)
    assert (outcomes[: N // 2] == Outcome.CHANGED).all()
    assert (outcomes[N // 2 :] == Outcome.TOOK_EFFECT).all()
    _, got = read(three, rows)
    assert (got[N // 2 :, 3] == 7).all()
    again = half.copy()
    again[:, 3] = 8
    assert (decide(three, "relocate", again)[0] == Outcome.CHANGED).all()
    absent = rows_of(5, seed=9)
    assert (decide(three, "relocate", absent)[0] == Outcome.ABSENT).all()


@pytest.mark.parametrize("half_written", [1, 2])
def test_a_refused_relocate_is_never_read(three: Replicas, half_written: int) -> None:
    """A put that died at one replica: the others take the relocate, so it took effect before that put."""
    write(three, rows_of(N))
    _, seen = read(three, rows_of(N))
    newer = rows_of(N, value=2)
    newer[:, 2] = three.stores[0].engine.clock.stamp()
    three.replicas[half_written].apply("default", 0, newer)
    moved = seen.copy()
    moved[:, 3] = 3
    outcomes, _ = decide(three, "relocate", moved)
    _, got = read(three, rows_of(N))
    took_effect = outcomes == Outcome.TOOK_EFFECT
    assert took_effect.any()
    assert not took_effect.all()  # where the quorum met the newer one
    assert (got[~took_effect, 3] == 2).all()


def test_an_undecided_insert_is_reported_as_unacknowledged(three: Replicas) -> None:
    three.down = {1, 2}
    outcomes, _ = decide(three, "insert", rows_of(N))
    assert (outcomes == Outcome.UNACKNOWLEDGED).all()


def test_an_insert_that_one_replica_took_is_not_reported_as_refused(three: Replicas) -> None:
    """A put came between two attempts, and its node's clock is behind: the first attempt wins."""
    put = rows_of(1, value=2)
    put[:, 2] = three.stores[1].engine.clock.stamp()
    three.set_clock(0, 5)
    apply = three.apply

    async def one_takes_it(slot: int, *rest: Any) -> Applied:
        if slot:
            raise PeerError(f"node {slot} is out of reach")
        return await apply(slot, *rest)

    async def meanwhile(_: float) -> None:
        three.apply, three.down = apply, {0}
        for slot in (1, 2):
            three.replicas[slot].apply("default", 0, put)

    three.apply, three.coordinator.writer._sleep = one_takes_it, meanwhile
    outcomes, _ = decide(three, "insert", rows_of(1))
    three.down = set()
    assert (outcomes == Outcome.UNACKNOWLEDGED).all()
    assert (read(three, rows_of(1))[1][:, 3] == 1).all()


def test_rows_stamped_far_ahead_are_refused(three: Replicas) -> None:
    rows = rows_of(1)
    rows[:, 2] = three.stores[0].engine.clock.stamp() + (120_000 << MS_SHIFT)
    with pytest.raises(Exception, match="ahead of this node's clock"):
        three.replicas[1].apply("default", 0, rows)


def test_a_clock_far_ahead_does_not_stop_other_nodes_from_writing(three: Replicas) -> None:
    three.set_clock(1, 3600)
    ahead = rows_of(N)
    ahead[:, 2] = three.stores[1].engine.clock.stamp()
    three.replicas[1].apply("default", 0, ahead)
    assert write(three, rows_of(N, value=2)).all()  # the two others have it; the third has something newer
    assert write(three, rows_of(N, value=3, seed=1)).all()


def test_the_larger_location_of_one_version_wins_in_any_order(three: Replicas) -> None:
    """Two attempts of one relocate, each at another replica: all must end with the same."""
    small, large = rows_of(N, value=1), rows_of(N, value=2)
    small[:, 2] = large[:, 2] = three.stores[0].engine.clock.stamp()
    assert (three.replicas[0].apply("default", 0, small).outcomes == Outcome.TOOK_EFFECT).all()
    assert (three.replicas[0].apply("default", 0, large).outcomes == Outcome.TOOK_EFFECT).all()
    assert (three.replicas[1].apply("default", 0, large).outcomes == Outcome.TOOK_EFFECT).all()
    assert (three.replicas[1].apply("default", 0, small).outcomes == Outcome.STALE).all()
    assert three.holding(large)[:2] == [N, N]
