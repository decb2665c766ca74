"""One attack on one server, and what a healthy client has of it: before, during, and after it ends.

    calm: the healthy client's pace, the server's memory ── attack ── its end ── calls succeed at once again

The healthy client is the SDK as users have it: it looks up a batch that is held, puts another and looks that
up. An answer that is wrong is an error at once; a call that fails may only be Unavailable, a deadline, or a
write that is not known to have taken effect.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import kvmeta
from kvmeta.client.options import ClientOptions
from tests.crash.small import ids, locations
from tests.patience import HANG_S
from tests.serving import ServerProcess

ROOT = Path(__file__).parents[2]
ROWS, HELD = 256, 4096
AT_ONCE_S = 1.0
"""A call that takes no longer has succeeded at once."""
RECOVERY_S_MAX = 5.0
RECOVERY_CALLS_MAX = 2000
"""Calls of the calm before in which a server recovers, where the machine is so slow that they take longer."""
GROWN_MB_MAX = 400
"""By how much a server's resident memory may grow: 128 MiB of bytes under way and as many of messages that
are being read (docs/operating.md), the windows of calls that wait, some 10 KiB a connection."""
_STREAK = 20
_SAMPLE_S = 0.05
_TYPED = (kvmeta.UnavailableError, kvmeta.DeadlineError, kvmeta.OutcomeUnknownError)


@dataclass(frozen=True)
class Outcome:
    """What an attack did. Rates are calls a second; `failed` counts calls that ended with a typed error.

    `recovery_cpu_s` is the server's processor time during the recovery: what is left of an attack costs that
    much, however long it takes where others have the cores.
    """

    grown_mb: float
    calls: int
    failed: int
    rate_before: float
    rate_during: float
    slowest_s: float
    recovery_s: float
    recovery_cpu_s: float

    @property
    def recovery_s_max(self) -> float:
        """Return how long the recovery may take on a machine that is as fast as it was before the attack."""
        return max(RECOVERY_S_MAX, RECOVERY_CALLS_MAX / self.rate_before)


class Healthy:
    """The healthy client."""

    def __init__(self, target: str) -> None:
        self._dataset = kvmeta.open(
            target, options=ClientOptions(timeout_s=10, connect_timeout_s=HANG_S)
        ).dataset()
        self._dataset.put(ids(0, HELD), locations(ids(0, HELD)))
        self._turn = 0
        self.calls = self.failed = 0
        self.slowest_s = 0.0

    def call(self) -> tuple[bool, float]:
        """Look up a batch, or put one; return whether it succeeded, and its seconds; raise if wrong."""
        self._turn += 1
        started = time.monotonic()
        try:
            if self._turn % 4 == 0:
                self._put()
            else:
                first = self._turn * 97 % (HELD - ROWS)
                self._check(first, 0)
            good = True
        except _TYPED:
            good = False
        spent = time.monotonic() - started
        self.calls += 1
        self.failed += not good
        self.slowest_s = max(self.slowest_s, spent)
        return good, spent

    def for_seconds(self, seconds: float) -> float:
        """Call for so long; return calls that succeeded a second."""
        started, before = time.monotonic(), self.calls - self.failed
        while time.monotonic() - started < seconds or self.calls - self.failed == before:
            assert time.monotonic() - started < HANG_S, "no call succeeds"
            self.call()
        return (self.calls - self.failed - before) / (time.monotonic() - started)

    def recovered(self, within_s: float, at_once_s: float) -> float:
        """Return after how many seconds calls succeed at once; at most about `within_s`, if they never do."""
        started = last = time.monotonic()
        streak = 0
        while streak < _STREAK and time.monotonic() - started < within_s:
            good, spent = self.call()
            streak = streak + 1 if good and spent < at_once_s else 0
            last = last if streak else time.monotonic()
        return last - started

    def _put(self) -> None:
        first = HELD + self._turn % 64 * ROWS
        some = ids(first, first + ROWS)
        self._dataset.put(some, locations(some, self._turn))
        self._check(first, self._turn)

    def _check(self, first: int, mark: int) -> None:
        some = ids(first, first + ROWS)
        hit = self._dataset.lookup(some)
        if not (hit.found.all() and np.array_equal(hit.locations, locations(some, mark))):
            raise AssertionError(f"the lookup of {first} … is wrong")


class Usage:
    """The most resident memory of a process since `start`, sampled, and its processor time."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._end = threading.Event()
        self.idle = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Usage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def grown_mb(self) -> float:
        """Return by how much it grew."""
        return (self.most - self.idle) / 1e6

    @property
    def cpu_s(self) -> float:
        """Return the processor time it has taken."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            self.most = max(self.most, self._process.memory_info().rss)


def besieged(
    name: str, server: ServerProcess, healthy: Healthy, scale: float, calm_s: float, attack_s: float
) -> Outcome:
    """Attack a server for so many seconds; return what came of it."""
    healthy.slowest_s = 0.0
    rate_before = healthy.for_seconds(calm_s)
    at_once_s = max(AT_ONCE_S, 2 * healthy.slowest_s)  # the calm shows what a slow machine takes
    healthy.calls = healthy.failed = 0
    healthy.slowest_s = 0.0
    address = server.target.removeprefix("kvmeta://")
    with Usage(server.process.pid) as usage:
        attacker = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.attack", name, address, str(scale)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert attacker.stdin is not None
        assert attacker.stdout is not None
        try:
            ready = attacker.stdout.readline()
            rate_during = healthy.for_seconds(attack_s)
            assert ready, f"the attack {name} did not begin"
            assert attacker.poll() is None, f"the attack {name} ended by itself"
        finally:
            attacker.kill()  # its connections end with it, at once
            attacker.wait()
            attacker.stdin.close()
            attacker.stdout.close()
        before_s = usage.cpu_s
        recovery_s = healthy.recovered(4 * max(RECOVERY_S_MAX, RECOVERY_CALLS_MAX / rate_before), at_once_s)
        recovery_cpu_s = usage.cpu_s - before_s
    assert server.process.poll() is None, f"the server died of {name}"
    calls, failed, slowest = healthy.calls, healthy.failed, healthy.slowest_s
    return Outcome(
        usage.grown_mb, calls, failed, rate_before, rate_during, slowest, recovery_s, recovery_cpu_s
    )
