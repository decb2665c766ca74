"""What outlives a simulated node's engine: a disk in memory, in a share of seeds the real engine's files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kvmeta.engine.engine import Engine
from kvmeta.engine.state import State
from kvmeta.engine.tree import Tree
from kvmeta.errors import KvmetaError
from kvmeta.testing.memory import OPTIONS, MemoryDisk, MemoryEngine
from kvmeta.version import HybridClock

_OPTIONS = replace(OPTIONS, keep_tombstones=True, background=False)


class Storage(Protocol):
    """A node's store."""

    def open(self, clock: HybridClock) -> State:
        """Open the store again as its last life left it."""

    def crash(self) -> None:
        """End the life that has it open, without a word; its engine can still be looked into."""


class _PurgesAtOnce(State):
    """Merges as soon as tombstones may go, so that whatever goes too early is missed soon."""

    def allow_purge(self, tree: Tree, below: int) -> None:
        """Let tombstones go, and drop them."""
        rises = below > tree.purge_below
        super().allow_purge(tree, below)
        if rises:
            with suppress(KvmetaError):
                self.background.compact()


class _PurgingMemoryEngine(_PurgesAtOnce, MemoryEngine):
    pass


class _PurgingEngine(_PurgesAtOnce, Engine):
    pass


class MemoryStorage:
    """The twin's: cheap, and its syncs can fail."""

    def __init__(self, rng: random.Random, fail: Callable[[], KvmetaError | None], *, purges: bool) -> None:
        self._kind = _PurgingMemoryEngine if purges else MemoryEngine
        self._disk = MemoryDisk(rng.randbytes(16), fail=fail, keep_failed=lambda: rng.random() < 0.5)

    def open(self, clock: HybridClock) -> State:
        """Open the store again."""
        return self._kind(self._disk, clock, _OPTIONS)

    def copied(self) -> MemoryStorage:
        """Return a copy of it as it would be after a crash."""
        twin = copy(self)
        twin._disk = replace(self._disk, manifest=dict(self._disk.manifest), records=list(self._disk.records))
        return twin

    def crash(self) -> None:
        """Do nothing: what was not synced was never on the disk."""


class DirectoryStorage:
    """The real engine's. A killed process leaves its files as they are: a copy of them is opened next."""

    def __init__(self, directory: Path, *, purges: bool) -> None:
        self._kind = _PurgingEngine if purges else Engine
        self._directory = directory
        self._lives = 0
        self._engine: Engine | None = None

    def open(self, clock: HybridClock) -> State:
        """Open the store again."""
        if self._engine is not None:
            if self._engine.path == self._path:  # the life before did not get so far as to be killed
                self.crash()
            self._engine.close()
            shutil.rmtree(self._engine.path)
        self._engine = self._kind(self._path, options=_OPTIONS, clock=clock)
        return self._engine

    def crash(self) -> None:
        """Keep what the directory holds now for the next life."""
        if self._engine is not None and self._engine.path == self._path:
            self._lives += 1
            shutil.copytree(self._engine.path, self._path)

    @property
    def _path(self) -> Path:
        return self._directory / str(self._lives)
