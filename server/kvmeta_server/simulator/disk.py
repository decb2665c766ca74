"""A simulated machine's disk and threads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from kvmeta.errors import KvmetaError

T = TypeVar("T")


class SimulatedDisk:
    """Small files in memory: `seams.Disk`. `fail` is asked before each write."""

    def __init__(self, rng: random.Random, fail: Callable[[], KvmetaError | None]) -> None:
        self._rng = rng
        self._fail = fail
        self._files: dict[str, bytes] = {}
        self._synced: dict[str, int] = {}

    def copied(self) -> SimulatedDisk:
        """Return a copy of what is there."""
        twin = SimulatedDisk(self._rng, self._fail)
        twin._files, twin._synced = dict(self._files), dict(self._synced)
        return twin

    def where(self, name: str) -> str:
        """Return what to call a file in messages."""
        return name

    def names(self, below: str) -> list[str]:
        """Return the names of the files in a directory, sorted."""
        start = f"{below}/"
        return sorted(name.removeprefix(start) for name in self._files if name.startswith(start))

    def size(self, name: str) -> int:
        """Return a file's bytes; 0 where there is no such file."""
        return len(self._files.get(name, b""))

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes | None:
        """Return up to `size` bytes from byte `start` on; None where there is no such file."""
        raw = self._files.get(name)
        if raw is None:
            return None
        return raw[start:] if size < 0 else raw[start : start + size]

    def replace(self, name: str, raw: bytes) -> None:
        """Replace a file durably."""
        self._check()
        self._files[name], self._synced[name] = raw, len(raw)

    def append(self, name: str, raw: bytes) -> None:
        """Append, not durably; a write that fails may leave a part."""
        held = self._files.get(name, b"")
        try:
            self._check()
        except KvmetaError:
            self._files[name] = held + raw[: self._rng.randrange(len(raw) + 1)]
            raise
        self._files[name] = held + raw

    def truncate(self, name: str, size: int) -> None:
        """Cut a file."""
        self._check()
        self._files[name] = self._files[name][:size]
        self._synced[name] = min(size, self._synced.get(name, 0))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        self._check()
        self._files.pop(name, None)
        self._synced.pop(name, None)

    def lose_power(self) -> None:
        """Tear off an end of what was not synced."""
        for name, raw in self._files.items():
            synced = self._synced.get(name, 0)
            if len(raw) > synced:
                self._files[name] = raw[: self._rng.randint(synced, len(raw))]

    def _check(self) -> None:
        error = self._fail()
        if error is not None:
            raise error


class SimulatedLane:
    """Threads that take a while: `seams.Lane`. Work is done at once, after a wait, or before one."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`."""
        when = self._rng.random()
        if when < 0.3:
            return work()
        if when < 0.65:
            await asyncio.sleep(0.002 * self._rng.random())
            return work()
        result = work()
        await asyncio.sleep(0.002 * self._rng.random())
        return result

    def close(self, patience_s: float = 10.0) -> None:
        """Do nothing."""
