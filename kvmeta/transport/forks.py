"""No fork while a call of the blocking SDK is under way; those of kvmeta.aio survive no fork at all.

gRPC survives a fork only if nothing else runs its code at that moment. Otherwise its locks may be copied as
another thread holds them, and the child hangs inside fork() itself, where Python can neither notice nor
refuse; and in the parent a fork amid a reply can break the connection. So calls go through a gate, and a fork
waits until they are done:

    a thread     with gate.inside(timeout_s): one call that blocks, or is started
                 gate.follow(future, timeout_s): one that gRPC's own threads end
    a fork       before: nobody enters, wait for those inside     after, in the parent and in the child: open

Every call has a deadline, hence so has the wait.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import grpc

from kvmeta.errors import UnsupportedError

_SETTING = "GRPC_ENABLE_FORK_SUPPORT"  # on by default; `import kvmeta` sets it where nobody did
_GRACE_S = 1.0  # gRPC tells a passed deadline a little later
_NO_THREAD = 0  # what gRPC's own threads end


class Pass:
    """One stay inside: a `with` lasts as long. An interrupt (Ctrl-C) may leave it behind past its time."""

    __slots__ = ("_gate", "_timeout_s", "thread", "until")

    def __init__(self, gate: Gate, thread: int, timeout_s: float) -> None:
        self._gate = gate
        self._timeout_s = timeout_s
        self.thread = thread
        self.until = 0.0

    def begin(self) -> None:
        """Let the time run from now on: not before, for it may have waited for a fork."""
        self.until = time.monotonic() + self._timeout_s + _GRACE_S

    def __enter__(self) -> None:
        self._gate.enter(self)

    def __exit__(self, *_: object) -> None:
        self._gate.leave(self)


class Gate:
    """Where threads enter gRPC. One for the process, as a fork takes the whole process."""

    def __init__(self) -> None:
        self._open_anew([])
        self._has_support = os.environ.get(_SETTING, "1").lower() not in ("0", "false", "f", "no", "n")
        self._is_fork = False

    def check_fork(self) -> None:
        """Raise UnsupportedError in a fork where gRPC was told not to support forks: calls would hang."""
        if self._is_fork and not self._has_support:
            raise UnsupportedError(
                f"{_SETTING} is off, and this process was forked from one that used gRPC, which cannot work "
                f'here. Leave {_SETTING} alone, or start processes by "spawn" or "forkserver"'
            )

    def inside(self, timeout_s: float = 0.0) -> Pass:
        """Return a pass of this thread for up to `timeout_s`."""
        return Pass(self, threading.get_ident(), timeout_s)

    def follow(self, future: grpc.Future[Any], timeout_s: float) -> None:
        """Let forks wait for `future`, which ends by itself in `timeout_s`. Called inside."""
        stay = Pass(self, _NO_THREAD, timeout_s)
        with self._lock:
            stay.begin()
            self._inside.append(stay)
        future.add_done_callback(lambda _: self.leave(stay))

    def enter(self, stay: Pass) -> None:
        """Enter; while a fork waits or happens, wait before it."""
        with self._lock:
            # A signal's handler may call out of a call: the fork waits for that thread already.
            while self._forks and all(other.thread != stay.thread for other in self._inside):
                self._changed.wait()
            stay.begin()
            self._inside.append(stay)

    def leave(self, stay: Pass) -> None:
        """Leave, if still inside."""
        with self._lock:
            if stay in self._inside:
                self._inside.remove(stay)
            if self._forks:
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Let nobody in, and wait until all others are out."""
        with self._lock:
            self._forks += 1
            while (wait_s := self._others_out_s()) > 0:
                self._changed.wait(wait_s)

    def after_fork_in_parent(self) -> None:
        """Open again."""
        with self._lock:
            self._forks -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Open anew: the other threads are gone, and one may have held the lock."""
        thread = threading.get_ident()
        self._open_anew([stay for stay in self._inside if stay.thread == thread])
        self._is_fork = True

    def _open_anew(self, inside: list[Pass]) -> None:
        self._lock = threading.RLock()  # a signal's handler may come while its thread holds it
        self._changed = threading.Condition(self._lock)
        self._inside = inside
        self._forks = 0

    def _others_out_s(self) -> float:
        """Return in how many seconds all but this thread are out at the latest; 0 if they are."""
        thread, now = threading.get_ident(), time.monotonic()
        return max((stay.until - now for stay in self._inside if stay.thread != thread), default=0.0)


gate = Gate()
# Hooks registered last run first before a fork. gRPC registers its own with its first channel, and they stop
# the threads that ours wait for: so let it register first.
grpc.insecure_channel("localhost").close()
os.register_at_fork(
    before=gate.before_fork,
    after_in_parent=gate.after_fork_in_parent,
    after_in_child=gate.after_fork_in_child,
)
