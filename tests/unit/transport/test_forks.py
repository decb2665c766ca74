"""The gate that forks wait at, without gRPC."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from kvmeta.transport import forks
from kvmeta.transport.forks import Gate
from tests.patience import HANG_S, until


class Fork:
    """A fork's hooks before it and in the parent, in a thread of its own."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.waited, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.gate.before_fork()
        self.waited.set()
        self.go_on.wait(HANG_S)
        self.gate.after_fork_in_parent()

    def happens(self) -> bool:
        return self.waited.wait(HANG_S)

    def waits(self) -> bool:
        """Return whether it has not happened although it had time to."""
        return not self.waited.wait(0.1)

    def ends(self) -> None:
        self.go_on.set()
        self.thread.join(HANG_S)
        assert not self.thread.is_alive()


def in_a_thread(work: Callable[[], Any]) -> threading.Event:
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


def enter(gate: Gate) -> None:
    with gate.inside():
        pass


def test_a_second_fork_waits_for_a_thread_that_the_first_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    later_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later_s)
    monkeypatch.setattr(forks, "time", clock)
    monkeypatch.setattr(forks, "_GRACE_S", HANG_S)
    gate = Gate()
    first = Fork(gate)
    assert first.happens()
    stay, out = gate.inside(), threading.Event()

    def call() -> None:
        with stay:
            out.wait(HANG_S)

    done = in_a_thread(call)
    later_s = 2 * HANG_S  # longer than the pass was made for
    first.ends()
    until(lambda: stay in gate._inside, "the thread that was held up does not enter")
    second = Fork(gate)
    assert second.waits()
    out.set()
    assert done.wait(HANG_S)
    assert second.happens()
    second.ends()


def test_a_fork_waits_for_a_thread_inside() -> None:
    gate = Gate()
    with gate.inside(HANG_S):
        fork = Fork(gate)
        assert fork.waits()
    assert fork.happens()
    fork.ends()


def test_a_fork_waits_even_for_a_future_of_its_own_thread() -> None:
    gate, future = Gate(), Future()
    with gate.inside():
        gate.follow(future, HANG_S)
    ended = threading.Timer(0.1, future.set_result, [None])
    ended.start()
    gate.before_fork()
    assert future.done()
    gate.after_fork_in_parent()


def test_a_fork_does_not_wait_for_a_finished_future() -> None:
    gate, future = Gate(), Future()
    future.set_result(None)
    with gate.inside():
        gate.follow(future, HANG_S)
    fork = Fork(gate)
    assert fork.happens()
    fork.ends()


def test_no_thread_enters_the_gate_while_a_fork_waits_or_happens() -> None:
    gate = Gate()
    with gate.inside(HANG_S):
        fork = Fork(gate)
        assert fork.waits()
        entered = in_a_thread(lambda: enter(gate))
        assert not entered.wait(0.1)
    assert fork.happens()
    assert not entered.wait(0.1)
    fork.ends()
    assert entered.wait(HANG_S)


def test_two_forks_at_once_both_happen_and_the_gate_opens_after_the_last() -> None:
    gate = Gate()
    first, second = Fork(gate), Fork(gate)
    assert first.happens()
    assert second.happens()
    first.ends()
    entered = in_a_thread(lambda: enter(gate))
    assert not entered.wait(0.1)
    second.ends()
    assert entered.wait(HANG_S)


def test_a_thread_inside_does_not_wait_for_itself_when_it_forks() -> None:
    gate = Gate()
    with gate.inside(HANG_S):
        gate.before_fork()
        gate.after_fork_in_parent()


def test_a_thread_inside_may_enter_again_while_a_fork_waits_for_it() -> None:
    gate = Gate()
    with gate.inside(HANG_S):
        fork = Fork(gate)
        assert fork.waits()
        enter(gate)
        assert fork.waits()
    assert fork.happens()
    fork.ends()


def test_a_failed_call_leaves_the_gate() -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError), gate.inside(HANG_S):
        raise ZeroDivisionError
    fork = Fork(gate)
    assert fork.happens()
    fork.ends()


def test_a_fork_does_not_wait_for_calls_past_their_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmeta.transport.forks._GRACE_S", 0.0)
    gate = Gate()
    with gate.inside(0.05):
        fork = Fork(gate)
        assert fork.happens()
    fork.ends()


def test_an_interrupt_while_waiting_leaves_the_gate_open() -> None:
    gate = Gate()
    fork = Fork(gate)
    assert fork.happens()
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background

    def interrupt() -> None:
        until(lambda: gate._changed._waiters, "nobody waits at the gate")  # type: ignore[attr-defined]
        signal.pthread_kill(main, signal.SIGINT)

    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            enter(gate)
    finally:
        signal.signal(signal.SIGINT, before)
    fork.ends()
    enter(gate)
    again = Fork(gate)
    assert again.happens()
    again.ends()


def test_a_child_starts_with_an_open_gate_whatever_other_threads_held() -> None:
    gate = Gate()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with gate.inside(HANG_S), gate._changed:
            held.set()
            release.wait(HANG_S)

    done = in_a_thread(hold)
    assert held.wait(HANG_S)
    gate.after_fork_in_child()
    assert in_a_thread(lambda: enter(gate)).wait(HANG_S)
    fork = Fork(gate)
    assert fork.happens()
    fork.ends()
    release.set()
    assert done.wait(HANG_S)
