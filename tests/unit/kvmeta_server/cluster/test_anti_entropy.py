"""Anti-entropy over real replicas: what differs is exchanged, and only what must be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmeta.errors import UnavailableError
from kvmeta.protocol.codes import Outcome
from kvmeta_server.cluster import anti_entropy
from kvmeta_server.cluster.anti_entropy import AntiEntropy, Report, merged
from kvmeta_server.simulator.loop import SimulatedLoop
from tests.unit.kvmeta_server.cluster.replicas import PARTITIONS, Replicas, put, rows_of

N = 2000


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Replicas]:
    made = Replicas(tmp_path)
    yield made
    made.close()


def compare(replicas: Replicas) -> Report:
    total = Report()
    for slot, store in enumerate(replicas.stores):
        each = AntiEntropy(slot, replicas.maps, replicas, store.engine.clock, lambda _: 0, grace_s=0)
        report = replicas.run(each.compare("default"))
        total.partitions += report.partitions
        total.rows += report.rows
        total.skipped += report.skipped
    return total


@pytest.mark.slow
def test_replicas_become_equal_and_equal_ones_exchange_nothing(three: Replicas) -> None:
    first = put(three, rows_of(N), 0, 1)
    second = put(three, rows_of(N, seed=2), 2)
    report = compare(three)
    assert report.partitions == PARTITIONS
    assert report.rows == N + 2 * N
    assert three.holding(first) == [N] * 3
    assert three.holding(second) == [N] * 3
    again = compare(three)
    assert (again.partitions, again.rows) == (PARTITIONS, 0)


@pytest.mark.slow
def test_a_comparison_sends_the_larger_of_two_versions_to_all(three: Replicas) -> None:
    put(three, rows_of(N), 0, 1, 2)
    newer = put(three, rows_of(N, value=5), 1)
    compare(three)
    assert three.holding(newer) == [N] * 3


def test_an_absent_owner_stops_the_comparison_and_keeps_tombstones(three: Replicas) -> None:
    three.down = {2}
    report = compare(three)
    assert report.partitions == 0
    assert report.skipped >= PARTITIONS * 2 // 3 - 3
    assert all(replica.tree("default").purge_below == 0 for replica in three.replicas.values())


def test_agreement_frees_tombstones_and_deleted_entries_do_not_return(three: Replicas) -> None:
    old = put(three, rows_of(N), 0, 1, 2)
    put(three, rows_of(N), 0, 1, 2, delete=True)
    compare(three)
    for store in three.stores:
        store.compact()
        assert sum(run.record.rows for run in store.engine.tree("default").runs) == 0
    late = three.replicas[0].apply("default", 0, old)
    assert (late.outcomes == Outcome.REFUSED).all()
    assert compare(three).rows == 0
    assert three.holding(old) == [0] * 3


def test_without_agreement_merges_keep_tombstones(three: Replicas) -> None:
    put(three, rows_of(N), 0)
    deleted = put(three, rows_of(N), 0, delete=True)
    three.stores[0].compact()
    assert three.holding(deleted)[0] == N


def test_a_promise_lets_relocates_of_held_entries_through(three: Replicas) -> None:
    held = put(three, rows_of(N), 0, 1, 2)
    compare(three)
    moved = held.copy()
    moved[:, 2] += np.uint64(1)
    assert (three.replicas[0].apply("default", 0, moved).outcomes == Outcome.TOOK_EFFECT).all()


def test_a_comparison_makes_no_promise_from_a_clock_far_ahead(three: Replicas) -> None:
    three.set_clock(1, 3600)
    compare(three)
    assert put(three, rows_of(N), 0, 1, 2).any()
    assert three.holding(rows_of(N)) == [N] * 3


def test_merged_takes_the_largest_of_each_id() -> None:
    a = rows_of(100)
    a = a[np.lexsort((a[:, 1], a[:, 0]))]
    a[:, 2] = 5
    b = a[::2].copy()
    b[:, 2] = np.where(np.arange(50) % 2, 7, 3)
    out = merged([a, b])
    assert len(out) == 100
    assert out[::2, 2].tolist() == [7 if i % 2 else 5 for i in range(50)]
    assert len(merged([])) == 0


@pytest.fixture
def timed(tmp_path: Path) -> Iterator[Replicas]:
    """Three nodes on simulated time."""
    made = Replicas(tmp_path)
    made.loop.close()
    loop = made.loop = SimulatedLoop()  # type: ignore[assignment]
    made.run = lambda work: loop.run_until_complete(loop.create_task(work))  # type: ignore[method-assign]
    yield made
    made.close()


def comparing(replicas: Replicas, **named: Any) -> AntiEntropy:
    clock = replicas.stores[0].engine.clock
    return AntiEntropy(0, replicas.maps, replicas, clock, lambda _: 0, grace_s=0, **named)


def test_a_background_comparison_rests_as_long_as_configured(
    timed: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anti_entropy, "GROUP", 1)
    digests = timed.digests

    async def slow(*args: Any, **named: Any) -> Any:
        await asyncio.sleep(1)
        return await digests(*args, **named)

    monkeypatch.setattr(timed, "digests", slow)
    took = []
    for rest in (0.0, 3.0):
        started = timed.loop.time()
        assert timed.run(comparing(timed).compare("default", rest)).partitions
        took.append(timed.loop.time() - started)
    assert took[1] == pytest.approx(4 * took[0])


def test_rows_are_exchanged_no_faster_than_they_may_be(timed: Replicas) -> None:
    put(timed, rows_of(N), 0, 1)
    started = timed.loop.time()
    sent = timed.run(comparing(timed, rows_s_max=100).compare("default")).rows
    assert sent
    assert timed.loop.time() - started >= sent / 100 - 1e-6


def test_a_comparison_ends_when_the_node_loses_its_lease(
    three: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anti_entropy, "GROUP", 1)
    rows = put(three, rows_of(N), 0, 1)
    groups = iter([True, True])

    def lease() -> None:
        if not next(groups, False):
            raise UnavailableError("no lease")

    with pytest.raises(UnavailableError, match="no lease"):
        three.run(comparing(three, may_go_on=lease).compare("default"))
    partitions = np.unique(rows[:, 0] >> np.uint64(60), return_counts=True)[1]
    assert 0 < three.holding(rows)[2] <= np.sort(partitions)[-2:].sum()


def test_a_comparison_brings_back_no_rows_a_former_owner_dropped(tmp_path: Path) -> None:
    """A comparison goes on with the map it began with, while its partitions move away from a node."""
    four = Replicas(tmp_path, 4)
    before = four.maps.current
    of_all = put(four, rows_of(N), 0, 1, 2, 3)
    left = of_all[(before.owners[before.partition_of(of_all[:, 0])] == 3).any(axis=1)]
    after = before.with_member("n3", state="draining")
    after = after.switched(range(PARTITIONS)).finished(range(PARTITIONS))
    four.adopt(after)
    four.maps.current = after
    put(four, left.copy(), 0, 1, 2, delete=True)
    compare(four)
    for store in four.stores[:3]:
        store.compact()  # the tombstones are gone
    four.maps.current = before  # as for a node that has begun, or has not heard of it
    report = compare(four)
    assert four.holding(left)[:3] == [0] * 3
    assert report.skipped
    four.close()
