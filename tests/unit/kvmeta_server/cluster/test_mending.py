"""Mending over real replicas: what is damaged is brought back from the others, and nothing else with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmeta.engine.damage import lost
from kvmeta.engine.window import HASH_MAX
from kvmeta.version import TOMBSTONE
from kvmeta_server.cluster.anti_entropy import AntiEntropy
from kvmeta_server.cluster.mending import Mending, lacking
from tests.unit.kvmeta_server.cluster import replicas as replicas_
from tests.unit.kvmeta_server.cluster.replicas import PARTITIONS, Replicas, put, rows_of

N = 2000
PAGE = 4096


class Here:
    """A lane without threads."""

    async def run(self, work: Callable[[], Any]) -> Any:
        return work()

    def close(self, patience_s: float = 0.0) -> None:
        pass


class Events:
    """A log that is kept."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    warning = info

    def fault(self, where: str, error: BaseException) -> None:
        raise error


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Replicas]:
    made = Replicas(tmp_path)
    yield made
    made.close()


def mending(replicas: Replicas, slot: int = 0, settled_s: float = 0.0) -> Mending:
    return Mending(replicas.replicas[slot], replicas, Here(), Events(), every_s=0.0, settled_s=settled_s)


def look(replicas: Replicas, each: Mending) -> str:
    return replicas.run(each.look())


def agree(replicas: Replicas) -> int:
    """Compare all partitions; return the rows that were exchanged."""
    rows = 0
    for slot, store in enumerate(replicas.stores):
        each = AntiEntropy(slot, replicas.maps, replicas, store.engine.clock, lambda _: 0, grace_s=0)
        report = replicas.run(each.compare("default"))
        assert not report.skipped
        rows += report.rows
    return rows


def files(replicas: Replicas, slot: int = 0) -> list[Path]:
    return sorted((replicas.stores[slot].engine.path / "segments").iterdir())


def damage(replicas: Replicas, *pages: int, slot: int = 0, file: int = 0) -> None:
    """Flip a bit in some row pages of a node's file, or in all of them, and read it once."""
    path = files(replicas, slot)[file]
    for page in pages or range(1, path.stat().st_size // PAGE - 3):
        with open(path, "r+b") as opened:
            opened.seek(page * PAGE + 99)
            flipped = opened.read(1)[0] ^ 4
            opened.seek(page * PAGE + 99)
            opened.write(bytes([flipped]))
    assert not replicas.stores[slot].verify().ok


def failed(replicas: Replicas, rows: np.ndarray, slot: int = 0) -> int:
    held = replicas.replicas[slot].tree("default").held(np.ascontiguousarray(rows[:, :2]))
    return int(held.failed.sum())


def live(replicas: Replicas, rows: np.ndarray, slot: int = 0) -> int:
    return int(replicas.replicas[slot].tree("default").lookup(np.ascontiguousarray(rows[:, :2])).found.sum())


@pytest.mark.slow
def test_a_damaged_page_is_mended_and_replicas_are_equal_again(three: Replicas) -> None:
    old = put(three, rows_of(N), 0, 1, 2)
    newer = put(three, rows_of(N // 2, value=5), 1, 2)  # missed here
    three.stores[0].flush()
    damage(three, 3, 7)
    unanswered = failed(three, old)
    assert 0 < unanswered < N // 2
    each = mending(three)
    assert look(three, each) == ""
    assert (each.damaged, each.mended) == (0, 2)
    assert [event for event, _ in each._log.told] == ["mended"]  # type: ignore[attr-defined]
    assert failed(three, old) == 0
    assert three.stores[0].verify().ok
    assert live(three, old) == N
    assert 0 < three.holding(newer)[0] <= unanswered  # mended to what the others hold by now
    agree(three)
    assert three.holding(newer) == [N // 2] * 3
    assert agree(three) == 0


def test_a_lost_file_is_mended(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    three.stores[0].close()
    files(three)[0].unlink()
    three.reopen(0)
    assert failed(three, rows) == N
    assert look(three, mending(three)) == ""
    assert three.holding(rows) == [N] * 3
    three.reopen(0)
    assert three.holding(rows) == [N] * 3
    assert agree(three) == 0


def test_mending_brings_back_no_entries_that_others_purged(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    put(three, rows_of(N), 0, 1, 2, delete=True)
    three.stores[0].flush()
    agree(three)
    for slot in (1, 2):
        three.stores[slot].compact()
        assert not three.replicas[slot].tree("default").held(np.ascontiguousarray(rows[:, :2])).found.any()
    damage(three, file=1)
    assert failed(three, rows) > N // 2
    assert look(three, mending(three)) == ""
    assert failed(three, rows) == 0
    assert live(three, rows) == 0
    got = three.run(three.coordinator.read("default", np.ascontiguousarray(rows[:, :2])))
    assert three.coordinator.absent("default", got.rows).all()
    assert agree(three) == 0
    three.stores[0].compact()
    assert not three.replicas[0].tree("default").runs


def test_damage_with_too_few_owners_stays_and_is_logged_once(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    damage(three, 3)
    three.down = {2}
    each = mending(three)

    async def a_while() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(each.run(), 0.2)

    three.run(a_while())
    ((event, fields),) = each._log.told  # type: ignore[attr-defined]
    assert event == "damage stays"
    assert "1 other owners answer, and it takes 2" in fields["reason"]
    assert (each.damaged, each.mended) == (1, 0)
    assert failed(three, rows) > 0
    three.down = set()
    assert look(three, each) == ""
    assert three.holding(rows) == [N] * 3


@pytest.mark.parametrize(("replicas", "mends"), [(2, True), (1, False)])
def test_mending_needs_enough_owners_for_every_acknowledged_write(
    tmp_path: Path, replicas: int, mends: bool
) -> None:
    some = Replicas(tmp_path, 2, replicas=replicas, write_quorum=replicas)
    try:
        rows = put(some, rows_of(N), 0, 1)
        some.stores[0].flush()
        damage(some, 3)
        reason = look(some, mending(some))
        assert (reason == "") is mends
        assert (failed(some, rows) == 0) is mends
    finally:
        some.close()


def test_replicas_that_are_damaged_at_the_same_place_wait_for_each_other(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    for slot in (0, 1):
        three.stores[slot].flush()
        damage(three, 3, slot=slot)
    assert "damaged" in look(three, mending(three))
    assert failed(three, rows) > 0


def test_mending_waits_until_writes_under_way_are_settled(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    damage(three, 3)
    each = mending(three, settled_s=3600)
    assert look(three, each) == ""
    assert (each.damaged, each.mended) == (1, 0)
    assert failed(three, rows) > 0
    assert "rows" not in three.calls


def test_mending_waits_for_moving_partitions_and_gives_up_lost_ones(tmp_path: Path) -> None:
    four = Replicas(tmp_path, 4)
    try:
        rows = put(four, rows_of(N), 0, 1, 2, 3)
        four.stores[0].flush()
        damage(four)
        moving = four.maps.current.with_member("n0", state="draining")
        four.adopt(moving)
        each = mending(four)
        assert "is on the move" in look(four, each)
        assert failed(four, rows) > 0
        four.adopt(moving.switched(range(PARTITIONS)).finished(range(PARTITIONS)))
        assert four.replicas[0].state.leftover(PARTITIONS).any()
        four.down, four.calls = {1, 2, 3}, []
        assert look(four, each) == ""
        assert four.calls == []
        assert failed(four, rows) == 0
        tree = four.replicas[0].tree("default")
        four.stores[0].engine.background.drop(tree, ((0, HASH_MAX),))  # damage is in its way no more
        assert tree.rows == 0
    finally:
        four.close()


def test_a_crash_after_mending_copied_rows_loses_nothing(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    damage(three, 3)
    three.stores[0].engine.background.give_up = lambda tree, lost: False  # type: ignore[method-assign]
    assert look(three, mending(three)) == ""
    brought = three.replicas[0].tree("default").rows - N
    assert brought > 0
    three.reopen(0)
    each = mending(three)
    assert look(three, each) == ""
    assert each.mended == 1
    assert three.replicas[0].tree("default").rows - N <= 0  # they were not brought again
    assert three.holding(rows) == [N] * 3


def hooked(replicas: Replicas, call: str, after: int, work: Callable[[], None]) -> None:
    """Do something as soon as replicas have answered a call so many times."""
    plain, answered = getattr(replicas, call), iter(range(1, 1000))

    async def then(*args: Any, **named: Any) -> Any:
        answer = await plain(*args, **named)
        if next(answered) == after:
            work()
        return answer

    setattr(replicas, call, then)


@pytest.mark.parametrize("last", [False, True])
def test_partitions_that_change_owners_meanwhile_are_copied_again(three: Replicas, last: bool) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    damage(three, 3)
    held = three.maps.current
    epoch = held.epoch + 1
    three.maps.current = replace(held, epoch=epoch, changed=np.full(PARTITIONS, epoch, np.uint64))
    ((start, end),) = lost(three.replicas[0].tree("default"))[0].stretches
    touched = (end >> held.shift) - (start >> held.shift) + 1
    call, after = ("digests", 4 * touched) if last else ("rows", 2)  # before and after, each of two others
    hooked(three, call, after, lambda: three.adopt(three.maps.current))
    each = mending(three)
    assert "changed their owners" in look(three, each)
    assert failed(three, rows) > 0
    assert look(three, each) == ""
    assert three.holding(rows) == [N] * 3


def test_mending_checks_again_when_others_agree_meanwhile(three: Replicas) -> None:
    rows = put(three, rows_of(N), 0, 1, 2)
    three.stores[0].flush()
    damage(three, 3)
    version = int(rows[0, 2])
    agreed = partial(replicas_.agree, three.replicas[1], range(PARTITIONS), version)
    hooked(three, "rows", 2, agreed)
    each = mending(three)
    assert "agreed on more" in look(three, each)
    assert failed(three, rows) > 0
    assert look(three, each) == ""


def test_only_agreed_rows_that_others_lack_are_marked_deleted() -> None:
    agreed = 100 << 8

    def row(high: int, version: int, value: int = 1) -> list[int]:
        return [high, 0, version, value, 0, 0]

    own = np.array(
        [
            row(1, 5 << 8),  # they purged it
            row(2, 200 << 8),  # newer than what was agreed on: they have not seen it yet
            row(3, (5 << 8) + 1),  # relocated, and they have not seen that yet
            row(4, 5 << 8 | TOMBSTONE),
            row(5, 5 << 8),  # the same there
            row(6, 5 << 8),  # newer there
        ],
        np.uint64,
    )
    theirs = np.array(
        [row(3, 5 << 8), row(5, 5 << 8), row(6, 7 << 8, 2), row(7, 6 << 8 | TOMBSTONE)], np.uint64
    )
    out = lacking(theirs, own, agreed)
    assert out.tolist() == [row(6, 7 << 8, 2), row(7, 6 << 8 | TOMBSTONE), row(1, 5 << 8 | TOMBSTONE, 0)]
