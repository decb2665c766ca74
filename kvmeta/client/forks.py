"""No fork while a call is under way.

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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from kvmeta.errors import UnsupportedError

_SETTING = "GRPC_ENABLE_FORK_SUPPORT"  # on by default; `import kvmeta` sets it where nobody did
_GRACE_S = 1.0  # gRPC tells a passed deadline a little later
_NO_THREAD = 0  # what gRPC's own threads end


class Gate:
    """Where threads enter gRPC. One for the process, as a fork takes the whole process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: list[tuple[int, float]] = []  # thread, and when it is out at the latest
        self._forks = 0
        self._has_support = os.environ.get(_SETTING, "1").lower() not in ("0", "false", "f", "no", "n")
        self._is_fork = False

    def check_fork(self) -> None:
        """Raise UnsupportedError in a fork where gRPC was told not to support forks: calls would hang."""
        if self._is_fork and not self._has_support:
            raise UnsupportedError(
                f"{_SETTING} is off, and this process was forked from one that used gRPC, which cannot work "
                f'here. Leave {_SETTING} alone, or start processes by "spawn" or "forkserver"'
            )

    @contextmanager
    def inside(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Stay inside for up to `timeout_s`; while a fork waits or happens, wait before entering."""
        entry = (threading.get_ident(), time.monotonic() + timeout_s + _GRACE_S)
        try:
            with self._changed:
                # A signal's handler may call out of a call: the fork waits for that thread already.
                while self._forks and all(thread != entry[0] for thread, _ in self._inside):
                    self._changed.wait()
                self._inside.append(entry)
            yield
        finally:
            self._leave(entry)

    def follow(self, future: grpc.Future[Any], timeout_s: float) -> None:
        """Let forks wait for `future`, which ends by itself in `timeout_s`. Called inside."""
        entry = (_NO_THREAD, time.monotonic() + timeout_s + _GRACE_S)
        with self._changed:
            self._inside.append(entry)
        future.add_done_callback(lambda _: self._leave(entry))

    def before_fork(self) -> None:
        """Let nobody in, and wait until all others are out."""
        with self._changed:
            self._forks += 1
            while (wait_s := self._others_out_s()) > 0:
                self._changed.wait(wait_s)

    def after_fork_in_parent(self) -> None:
        """Open again."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Open anew: the other threads are gone, and one may have held the lock."""
        thread = threading.get_ident()
        self._changed = threading.Condition()
        self._inside = [entry for entry in self._inside if entry[0] == thread]
        self._forks = 0
        self._is_fork = True

    def _leave(self, entry: tuple[int, float]) -> None:
        with self._changed:
            if entry in self._inside:
                self._inside.remove(entry)
            if self._forks:
                self._changed.notify_all()

    def _others_out_s(self) -> float:
        """Return in how many seconds all but this thread are out at the latest; 0 if they are.

        An entry past its time is one that an interrupt (Ctrl-C) left behind.
        """
        thread, now = threading.get_ident(), time.monotonic()
        return max((until - now for other, until in self._inside if other != thread), default=0.0)


gate = Gate()
# Hooks registered last run first before a fork. gRPC registers its own with its first channel, and they stop
# the threads that ours wait for: so let it register first.
grpc.insecure_channel("localhost").close()
os.register_at_fork(
    before=gate.before_fork,
    after_in_parent=gate.after_fork_in_parent,
    after_in_child=gate.after_fork_in_child,
)
