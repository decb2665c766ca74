"""A small scripted workload that makes every kind of system call a store and a node make, and its check.

`play` is the workload; it tells each step that returned. Whatever fails in it, it may meet only typed errors,
and its reads go on. `judge` opens what is left, in another process.
"""

from __future__ import annotations

import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine import filenames
from tests.crash.node_work import Hinting, Moving, wrong_hints, wrong_moves
from tests.crash.operations import SPACE, Operation, State, observed, outcomes, perform, same
from tests.crash.small import MANUAL, open_store

OPEN, CLOSE, READ, MOVE, HINT, REPLAY = "open", "close", "read", "move", "hint", "replay"
Step = str | Operation


def _script() -> list[Step]:
    rng = np.random.default_rng(20_240_402)
    steps: list[Step] = []

    def do(*kinds: str, rows: int = 0) -> None:
        for kind in kinds:
            order = rng.permutation(SPACE)[:rows]
            steps.append(Operation(kind, 0, order, len(steps) + 1))

    steps.append(OPEN)
    do("put", "put", rows=900)
    do("delete", "insert", "relocate", rows=300)
    do("flush")
    do("load", rows=1500)
    do("put", rows=1800)
    do("compact")
    steps += [HINT, HINT, REPLAY, HINT]
    steps += [MOVE] * 4
    do("toggle")
    do("put extra", rows=200)
    steps += [READ, CLOSE, OPEN]
    do("put", "delete", rows=200)
    do("toggle", "flush", "compact")
    steps += [REPLAY, MOVE, CLOSE]
    return steps


SCRIPT = _script()
READY, RIGHT = b"?", "right"
AFTERWARDS = Operation("put", 0, np.arange(0, SPACE, 40), 9_999)
"""What is tried once more after a step failed."""


@dataclass
class Told:
    """What the workload told: steps that returned, hints that were applied, how it ended."""

    done: int = 0
    replayed: list[int] = field(default_factory=list)
    error: str | None = None
    """The name of the typed error that ended it."""
    afterwards: bool = False
    wrong: str | None = None
    end: bool = False

    def hear(self, line: str) -> None:
        """Take a line in."""
        what, _, rest = line.partition(" ")
        if what == "done":
            self.done += 1
            self.replayed += [int(number) for number in rest.split()]
        elif what == "typed":
            self.error = rest
        elif what == "wrong":
            self.wrong = rest
        else:
            self.afterwards |= what == "afterwards"
            self.end |= what == "end"


def play(path: Path, tell: Callable[[str], None]) -> None:
    """Play the script and tell what happens, in lines that `Told` understands."""
    tempfile.tempdir = str(path.parent)  # links of a reader that is killed are left there
    player = _Player(path)
    try:
        for step in SCRIPT:
            told = "".join(f" {number}" for number in player.do(step))
            tell(f"done{told}")
    except kvmeta.KvmetaError as error:
        tell(f"typed {type(error).__name__}")
        try:
            if player.writes_after_an_error(step):
                tell("afterwards")
        except kvmeta.KvmetaError:
            pass
        except BaseException as other:  # noqa: BLE001 - told to the test
            tell(f"wrong after {error!r}: {where(other)}")
    except BaseException as error:  # noqa: BLE001 - told to the test
        tell(f"wrong at {step}: {where(error)}")
    try:
        if player.store is not None:
            player.store.close()
    except kvmeta.KvmetaError:
        pass
    except BaseException as error:  # noqa: BLE001 - told to the test
        tell(f"wrong at the close: {where(error)}")
    tell("end")


class _Player:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.store: EmbeddedStore | None = None
        self._state = State(np.zeros(SPACE, np.uint32))
        self._moves = self._hints = 0

    def do(self, step: Step) -> list[int]:
        """Do a step; return the hints it applied."""
        if step == OPEN:
            self.store = open_store(self._path, options=MANUAL)
            self._moving, self._hinting = Moving(self.store), Hinting(self.store)
            return []
        assert self.store is not None
        if isinstance(step, Operation):
            perform(self.store, step, self._state)
            self._state = outcomes(self._state, step)[-1]
        elif step == READ:
            with open_store(self._path, "r") as reader:
                assert same(observed(reader, 0), self._state)
        elif step == MOVE:
            self._moving.step(self._moves)
            self._moves += 1
        elif step == HINT:
            self._hinting.add(self._hints)
            self._hints += 1
        elif step == REPLAY:
            return self._hinting.replay()
        elif step == CLOSE:
            self.store.close()
            self.store = None
        return []

    def writes_after_an_error(self, step: Step) -> bool:
        """Read what must be there, then write once more, which may be refused; return whether it was done."""
        if self.store is None or self.store.engine._closed:
            return False
        allowed = outcomes(self._state, step) if isinstance(step, Operation) else [self._state]
        now = observed(self.store, 0)
        assert any(same(now, each) for each in allowed), "a wrong answer"
        perform(self.store, AFTERWARDS, self._state)
        return True


def where(error: BaseException) -> str:
    """Return an error and where it came from, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{error!r} in " + " < ".join(f"{Path(each.filename).name}:{each.lineno}" for each in frames[::-1])


def judge(path: Path, told: Told) -> str | None:
    """Return what is wrong with the store that the workload left; None where nothing is."""
    done = told.done
    if not filenames.identity(path).exists() and done:
        return "the store is gone"
    state = State(np.zeros(SPACE, np.uint32))
    for step in SCRIPT[:done]:
        if isinstance(step, Operation):
            state = outcomes(state, step)[-1]
    under_way = SCRIPT[done] if done < len(SCRIPT) else None
    allowed = outcomes(state, under_way) if isinstance(under_way, Operation) else [state]
    last = [stage for each in allowed for stage in outcomes(each, AFTERWARDS)]
    allowed = [outcomes(each, AFTERWARDS)[-1] for each in allowed] if told.afterwards else allowed + last
    with open_store(path, options=MANUAL) as store:
        if not store.verify().ok:
            return "a damaged page"
        now = observed(store, 0)
        if not any(same(now, each) for each in allowed):
            lost = int(np.count_nonzero((allowed[0].marks != 0) & (now.marks == 0)))
            return f"{lost} acknowledged entries are lost or others wrong"
        moves = SCRIPT[:done].count(MOVE)
        hints = SCRIPT[: done + 1].count(HINT)
        wrong = wrong_moves(store, moves, moves if under_way == MOVE else moves - 1)
        wrong = wrong or wrong_hints(store, told.replayed, hints)
        perform(store, AFTERWARDS, now)
    return wrong


def play_over(tell: socket.socket, path: Path) -> None:
    """Say READY, wait for an answer, play; told by `sendto`, which is never made to fail."""
    tell.sendall(READY)
    tell.recv(1)
    play(path, lambda line: tell.sendall(f"{line}\n".encode()))


def judge_over(tell: socket.socket, path: Path, told: Told) -> None:
    """Tell RIGHT, or what is wrong with the store."""
    try:
        verdict = judge(path, told) or RIGHT
    except BaseException as error:  # noqa: BLE001 - told to the test
        verdict = f"the check failed: {where(error)}"
    tell.sendall(verdict.encode())
