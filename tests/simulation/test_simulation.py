"""Seeds that must pass, and a trace that must be the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvmeta.version import TOMBSTONE
from kvmeta_server.simulator.__main__ import main
from kvmeta_server.simulator.history import NOTHING, Floor, History, Sent, Violation
from kvmeta_server.simulator.simulation import simulate

KEY, PLACE, OTHER = bytes(16), (1, 1, 0), (1, 2, 0)


@pytest.mark.parametrize("seed", range(1, 26))
def test_a_simulated_seed_breaks_no_rule(seed: int) -> None:
    result = simulate(seed)
    assert not result.violation, f"python -m kvmeta_server.simulator --seed {seed}: {result.violation}"
    assert sum(result.faults.values()) >= 25


def test_a_seed_has_one_trace_in_every_process() -> None:
    program = "from kvmeta_server.simulator.simulation import simulate; print(simulate(3).trace)"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    traces = {
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(traces) == 1


def test_a_second_run_skips_the_seeds_already_recorded(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    arguments = ["--seeds", "2", "--jobs", "1", "--faults", "3", "--record", f"{tmp_path}/seeds.jsonl"]
    assert main(arguments) == 0
    assert "2 of 2 seeds, 0 failed" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "recorded before 2" in capsys.readouterr().out


class TestHistory:
    """The checker notices what it is for."""

    def test_a_lost_write_is_a_violation(self) -> None:
        history = History()
        history.attempt(KEY, PLACE)
        history.acknowledge(KEY, NOTHING, 256, PLACE, "a put")
        (before,) = history.begin([KEY]).values()
        with pytest.raises(Violation, match="returns 0, and 256"):
            history.answer(KEY, before, 0, (0, 0, 0), "a read")

    def test_an_older_answer_is_a_violation_unless_it_overlaps_the_write(self) -> None:
        history = History()
        history.attempt(KEY, PLACE)
        (early,) = history.begin([KEY]).values()
        history.acknowledge(KEY, NOTHING, 1024, PLACE, "a put")
        history.answer(KEY, early, 0, (0, 0, 0), "a read")
        with pytest.raises(Violation, match="returns 512"):
            history.answer(KEY, history.floors[KEY], 512, PLACE, "a read")

    def test_a_deleted_entry_that_comes_back_is_a_violation(self) -> None:
        history = History()
        history.attempt(KEY, PLACE)
        history.attempt_delete(KEY, {KEY: Sent(1024 | TOMBSTONE, 1)})
        history.deletion(KEY, NOTHING, 1024 | TOMBSTONE)
        history.answer(KEY, history.floors[KEY], 0, (0, 0, 0), "a read")
        with pytest.raises(Violation, match="was known before"):
            history.answer(KEY, history.floors[KEY], 512, PLACE, "a read")

    def test_an_answer_that_nobody_wrote_is_a_violation(self) -> None:
        history = History()
        history.attempt(KEY, PLACE)
        with pytest.raises(Violation, match="nobody wrote"):
            history.answer_fast(KEY, NOTHING, 512, OTHER)

    def test_an_acknowledgement_below_a_known_version_is_a_violation(self) -> None:
        with pytest.raises(Violation, match="is acknowledged with 256"):
            History().acknowledge(KEY, Floor(512, PLACE), 256, OTHER, "a put")

    def test_an_insert_over_a_live_entry_is_a_violation_unless_somebody_deletes_it(self) -> None:
        history = History()
        with pytest.raises(Violation, match="an insert"):
            history.inserted(KEY, Floor(512, PLACE), 1024, OTHER)
        history.attempt_delete(KEY, {KEY: Sent(1024 | TOMBSTONE, 1)})
        history.inserted(KEY, Floor(512, PLACE), 1024, OTHER)

    def test_a_relocate_from_another_version_is_a_violation(self) -> None:
        history = History()
        history.relocated(KEY, Floor(512, PLACE), 512, OTHER)
        assert history.floors[KEY] == Floor(513, OTHER)
        with pytest.raises(Violation, match="a relocate"):
            history.relocated(KEY, Floor(2048, PLACE), 512, OTHER)
