"""`kvmeta cluster`: what its commands wait for, and what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from click.testing import Result

import kvmeta.operators
from kvmeta.cli import cluster as commands
from kvmeta.operators import Changed, Member, Status

Run = Callable[..., Result]


def member(name: str, state: str = "active", **figures: Any) -> Member:
    given = {"name": name, "address": f"{name}:1", "state": state, "zone": "", "answered": True, **figures}
    return Member(**{**{field.name: 0 for field in fields(Member)}, **given})  # type: ignore[arg-type]


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
        monkeypatch.setattr(kvmeta.operators, "open", lambda store: made)
        monkeypatch.setattr(commands, "_LOOK_S", 0)
        return made

    return give


def drain(run: Run) -> Result:
    return run("cluster", "drain", "n2", "--store", "kvmeta://n1:1", "--wait", "--json", "--no-progress")


def test_a_drain_ends_only_when_a_newer_map_lacks_the_node(run: Run, told: Callable[..., Told]) -> None:
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


def test_drain_stops_waiting_when_someone_undrains_the_node(run: Run, told: Callable[..., Told]) -> None:
    told(status(8, 0, member("n1"), member("n2")), changed=Changed(7, 12))
    done = drain(run)
    assert done.exit_code == 2
    assert "'n2' stays" in done.stderr


def test_nodes_are_shown_with_their_waiting_rows_and_dropped_hints(
    run: Run, told: Callable[..., Told]
) -> None:
    n1, n2 = member("n1", hinted=7, hints_dropped=3), member("n2", waiting=7)
    told(status(8, 0, n1, n2), changed=Changed(7, 12))
    for command in ("nodes", "status"):
        lines = run("cluster", command, "--store", "kvmeta://n1:1").stdout.splitlines()
        titles = next(i for i, line in enumerate(lines) if "rows waiting" in line)
        waiting, dropped = lines[titles].index("rows waiting"), lines[titles].index("hints dropped")
        shown = [(line[waiting:dropped].strip(), line[dropped:].split()[0]) for line in lines[titles + 1 :]]
        assert shown == [("0", "3"), ("7", "0")]
    (line, _) = run("cluster", "nodes", "--store", "kvmeta://n1:1", "--json").stdout.splitlines()
    assert {"hinted": 7, "waiting": 0, "hints_dropped": 3}.items() <= json.loads(line).items()
