"""`kvmeta cluster`: what its commands wait for, and what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

import kvmeta.cluster
from kvmeta.cli import cluster as commands
from kvmeta.cluster import Changed, Member, Status

Run = Callable[..., Result]


def member(name: str, state: str = "active", **figures: Any) -> Member:
    counts = dict.fromkeys(
        ("epoch", "owned", "incoming", "hinted", "leftover", "clock_ms", "rows_copied", "repaired"), 0
    )
    return Member(0, name, f"{name}:1", "", 1.0, state, True, True, **{**counts, **figures})


def status(epoch: int, moving: int, *members: Member) -> Status:
    return Status("test", "00", epoch, 16, 3, 2, moving, True, 0, members)


class Told:
    """A cluster whose answers are written down; each look takes the next of them, the last one for ever."""

    def __init__(self, *statuses: Status, changed: Changed) -> None:
        self._statuses = list(statuses)
        self._changed = changed
        self.looks = 0

    def status(self) -> Status:
        self.looks += 1
        return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    def drain(self, node: str, *, force: bool = False) -> Changed:
        return self._changed

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    def give(*statuses: Status, changed: Changed) -> Told:
        made = Told(*statuses, changed=changed)
        monkeypatch.setattr(kvmeta.cluster, "open", lambda store: made)
        monkeypatch.setattr(commands, "_LOOK_S", 0)
        return made

    return give


def drain(run: Run) -> Result:
    return run("cluster", "drain", "n2", "--store", "kvmeta://n1:1", "--wait", "--json", "--no-progress")


def test_a_drain_is_done_only_when_a_map_with_it_says_so(run: Run, told: Callable[..., Told]) -> None:
    n1, n2 = member("n1"), member("n2", "draining")
    cluster = told(
        status(6, 0, n1, member("n2")),  # a node that has not heard of the drain: nothing moves
        status(7, 12, n1, n2),
        status(8, 0, n1, n2),  # nothing moves, and the node is not out yet
        status(9, 0, n1),
        changed=Changed(7, 12),
    )
    done = drain(run)
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"epoch": 7, "moves": 12, "done": True}
    assert cluster.looks == 4


def test_a_drain_that_somebody_ends_is_not_waited_for(run: Run, told: Callable[..., Told]) -> None:
    told(status(8, 0, member("n1"), member("n2")), changed=Changed(7, 12))
    done = drain(run)
    assert done.exit_code == 2
    assert "'n2' stays" in done.stderr
