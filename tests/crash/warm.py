"""Imported by the fork server: its children find every kernel of the engine loaded.

A kernel's first call takes some 10 ms where it is cached, a store's life calls dozens, and the fault tests
start thousands of processes. A process that opened a store must not fork a writer, for RocksDB's threads
are gone in the fork; so the store that loads the kernels has its log in memory.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from kvmeta.engine import engine
from kvmeta.engine.rocks import Batch
from tests.crash.script import Told, play


class MemoryLog:
    """As much of `Rocks` as the store below asks for."""

    families: dict[Path, tuple[dict[bytes, bytes], dict[bytes, bytes]]] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        path.mkdir(exist_ok=True)
        self._manifest, self._wal = self.families.setdefault(path, ({}, {}))

    def __enter__(self) -> MemoryLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, batch: Batch) -> None:
        for key, value in batch.manifest.items():
            if value is None:
                self._manifest.pop(key, None)
            else:
                self._manifest[key] = value
        self._wal.update(batch.wal)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def manifest(self) -> dict[bytes, bytes]:
        return dict(self._manifest)

    def wal(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted((key, value) for key, value in self._wal.items() if key >= first))

    def last_wal_key(self) -> bytes | None:
        return max(self._wal, default=None)


def warm() -> None:
    """Let a small store do everything once, and forget it."""
    told = Told()
    with tempfile.TemporaryDirectory() as directory, patch.object(engine, "Rocks", MemoryLog):
        play(Path(directory) / "store", told.hear)
    assert told.end, told
    assert not told.wrong, told
    assert not told.error, told
    tempfile.tempdir = None
    MemoryLog.families.clear()
    gc.freeze()  # what is loaded stays; children share it


warm()
