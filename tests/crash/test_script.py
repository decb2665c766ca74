"""The checks of the fault tests can fail: each kind of loss is told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.crash.node_work import HINTED, Hinting, Moving, hint_rows, wrong_hints, wrong_moves
from tests.crash.operations import Operation
from tests.crash.script import HINT, MOVE, SCRIPT, Told, judge, play
from tests.crash.small import MANUAL, open_store


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    path = tmp_path_factory.mktemp("script") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", None)
        told = Told()
        play(path, told.hear)
    return path, told


def copy_of(played: tuple[Path, Told], where: Path) -> Path:
    return Path(shutil.copytree(played[0], where / "store"))


def test_the_script_runs_to_its_end_and_passes_the_check(played: tuple[Path, Told], tmp_path: Path) -> None:
    told = played[1]
    assert told.end
    assert told.done == len(SCRIPT)
    assert told.wrong is told.error is None
    assert told.replayed == list(range(SCRIPT.count(HINT)))
    assert judge(copy_of(played, tmp_path), told) is None


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"afterwards": True}, "lost"),
        ({"done": next(n for n, step in enumerate(SCRIPT) if isinstance(step, Operation)) + 1}, "wrong"),
        ({"done": SCRIPT.index(MOVE)}, "lost"),
    ],
)
def test_the_check_reports_an_impossible_state(
    played: tuple[Path, Told], tmp_path: Path, change: dict[str, object], wrong: str
) -> None:
    assert wrong in str(judge(copy_of(played, tmp_path), replace(played[1], **change)))  # type: ignore[arg-type]


def test_the_check_reports_a_missing_store(played: tuple[Path, Told], tmp_path: Path) -> None:
    assert judge(tmp_path / "nothing", played[1]) == "the store is gone"


def test_the_check_reports_moves_that_lost_rows_or_brought_them_back(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", options=MANUAL) as store:
        moving = Moving(store)
        for step in range(4):
            moving.step(step)
            assert wrong_moves(store, step + 1, step) is None
            assert wrong_moves(store, step, step) is None
        assert "ceiling" in str(wrong_moves(store, 5, 4))
        moving._state.reserve(1 << 40)
        assert "lost" in str(wrong_moves(store, 5, 4))  # the third copy was never made
        assert "back" in str(wrong_moves(store, 6, 5))  # the second partition was never dropped


def test_the_check_reports_lost_and_partial_hints(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", options=MANUAL) as store:
        hinting = Hinting(store)
        for number in range(3):
            hinting.add(number)
        assert wrong_hints(store, [], 3) is None
        assert "are lost" in str(wrong_hints(store, [1], 3))
        assert hinting.replay() == [0, 1, 2]
        assert wrong_hints(store, [0, 1, 2], 3) is None
        half = hint_rows(3)[:7]
        store.engine.ingest(store.engine.tree(HINTED), half[np.argsort(half[:, 0])])
        assert "half a hint" in str(wrong_hints(store, [0, 1, 2], 4))
