"""`kvmeta serve --supervise`: the server is a child process, started again where a read error ended it.

    supervisor ── fork ──> server ── SIGBUS: a mapped page that the device cannot read
        └── waits ── fork ──> server with `probe`: what cannot be read is quarantined, all else is served

Where a mapped page cannot be read there is nothing to answer with, so the process ends; it never answers
wrongly. Which page it was need not be carried over: the next server reads every segment by plain reads, which
fail with an error, before it maps them (`EngineOptions.probe`). Every other end is passed on as the exit
status: it is the business of whoever started this (systemd, Kubernetes). So is SIGBUS over and over.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from types import FrameType

from kvmeta_server.logs import Log

BACK_OFF_S = 1.0
"""Before the first restart; doubled before each further one. A device that comes and goes needs its time."""
ENDS_MAX = 5
"""Ends by SIGBUS in a row after each of which the server is started again."""
STEADY_S = 600.0
"""A server that ran for so long begins the row anew."""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


def supervise(log: Log) -> bool:
    """Return in each child that is to serve: whether a read error ended the one before. Never in the parent.

    The parent must have no threads yet; it raises SystemExit with the status that the last child ended with.
    """
    supervisor = _Supervisor()
    ends = 0
    while True:
        started = time.monotonic()
        if supervisor.fork():
            return ends > 0
        status = supervisor.wait()
        if status != -signal.SIGBUS or supervisor.stopping:
            raise SystemExit(status if status >= 0 else 128 - status)
        ends = 1 if time.monotonic() - started > STEADY_S else ends + 1
        if ends > ENDS_MAX:
            log.error(
                "given up", message=f"read errors ended the server {ends} times in a row; see to its disk"
            )
            raise SystemExit(128 + signal.SIGBUS)
        delay_s = BACK_OFF_S * 2 ** (ends - 1)
        message = "a read error of the device ended the server; the next one leaves out what cannot be read"
        log.error("read error", message=message, ends=ends, restart_s=delay_s)
        time.sleep(delay_s)


class _Supervisor:
    """A child at a time, and the signals that are passed on to it."""

    def __init__(self) -> None:
        self.stopping = False
        self._child = 0
        self._before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}

    def fork(self) -> bool:
        """Start a child; return True in it, with the signals as they were before."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # none may come before its receiver is known
        self._child = os.fork()
        if self._child == 0:
            for number, before in self._before.items():
                signal.signal(number, before)
            # Ctrl-C at a terminal shall reach it once, from the supervisor: a second one would cut it off.
            os.setpgid(0, 0)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                raise SystemExit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return self._child == 0

    def wait(self) -> int:
        """Return the child's exit status when it has ended; of a signal, its number below 0."""
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.stopping |= number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        if self._child:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._child, number)
        elif self.stopping:  # between two children
            raise SystemExit(0)
