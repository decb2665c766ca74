"""The supervisor of `kvmeta serve`: what it starts again, what it passes on, and when it gives up.

It forks, so each test lets a fork of this process be the supervisor and plays the server in its children.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmeta_server import supervisor
from kvmeta_server.logs import Log
from tests.patience import HANG_S, until

pytestmark = pytest.mark.slow


class Supervised:
    """A supervisor in a fork; each of its children notes a line of `notes` and does `work(number of it)`."""

    def __init__(self, notes: Path, work: Callable[[int], None]) -> None:
        self.notes = notes
        self.notes.touch()
        self.pid = os.fork()
        if self.pid == 0:
            faulthandler.disable()  # it would tell of each SIGBUS
            status = 70
            try:
                probe = supervisor.supervise(Log("json"))
                with open(notes, "a") as file:
                    file.write(f"{os.getpid()} {probe}\n")
                work(len(self.children()))
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 70
            finally:
                sys.stderr.flush()
                os._exit(status)

    def children(self) -> list[tuple[int, bool]]:
        """Return pid and `probe` of each child so far."""
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return [(int(pid), probe == "True") for pid, probe in lines]

    def child(self, number: int) -> int:
        """Wait for the `number`-th child (1 is the first) and return its pid."""
        until(lambda: len(self.children()) >= number, f"there is no child {number}")
        return self.children()[number - 1][0]

    def status(self) -> int:
        """Wait for the supervisor's end and return its exit status."""
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        pytest.fail("the supervisor does not end")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 0.01)


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(HANG_S)


def test_a_server_that_a_read_error_ended_is_started_again_with_a_probe(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path / "n", lambda turn: die(signal.SIGBUS) if turn < 3 else None)
    assert supervised.status() == 0
    assert [probe for _, probe in supervised.children()] == [False, True, True]


def test_the_supervisor_gives_up_after_too_many_read_errors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervised = Supervised(tmp_path / "n", lambda _: die(signal.SIGBUS))
    assert supervised.status() == 128 + signal.SIGBUS
    assert len(supervised.children()) == supervisor.ENDS_MAX + 1
    told = capfd.readouterr().err
    assert told.count('"event": "read error"') == supervisor.ENDS_MAX
    assert told.count('"event": "given up"') == 1


def test_a_long_run_resets_the_count_of_read_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)
    many = 2 * supervisor.ENDS_MAX
    supervised = Supervised(tmp_path / "n", lambda turn: die(signal.SIGBUS) if turn <= many else None)
    assert supervised.status() == 0
    assert len(supervised.children()) == many + 1


@pytest.mark.parametrize(
    ("end", "status"),
    [(lambda: os._exit(0), 0), (lambda: os._exit(4), 4), (lambda: die(signal.SIGKILL), 137)],
    ids=["ended", "failed", "killed"],
)
def test_the_supervisor_passes_on_any_other_exit_status(
    tmp_path: Path, end: Callable[[], None], status: int
) -> None:
    supervised = Supervised(tmp_path / "n", lambda _: end())
    assert supervised.status() == status
    assert len(supervised.children()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_server_once(tmp_path: Path, number: signal.Signals) -> None:
    def wait_for_it(_: int) -> None:
        came: list[int] = []
        signal.signal(number, lambda got, _: came.append(got))
        (tmp_path / "ready").touch()
        end = time.monotonic() + 0.3
        while time.monotonic() < end or not came:
            time.sleep(0.01)
        os._exit(40 + len(came))

    supervised = Supervised(tmp_path / "n", wait_for_it)
    supervised.child(1)
    until((tmp_path / "ready").exists, "the server never gets ready")
    os.kill(supervised.pid, number)
    assert supervised.status() == 41


def test_a_signal_between_two_servers_ends_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_S", 2 * HANG_S)
    supervised = Supervised(tmp_path / "n", lambda _: die(signal.SIGBUS))
    until(lambda: '"event": "read error"' in capfd.readouterr().err, "the supervisor does not see the end")
    os.kill(supervised.pid, signal.SIGTERM)
    assert supervised.status() == 0
    assert len(supervised.children()) == 1


def test_a_server_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path / "n", lambda _: time.sleep(2 * HANG_S))
    child = supervised.child(1)
    os.kill(supervised.pid, signal.SIGKILL)
    os.waitpid(supervised.pid, 0)
    until(lambda: _state(child) == "Z", "the server is still there")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return "Z"
