"""Hinted handoff: rows that a node did not take wait on this node's disk until it does.

A hint is no acknowledgement; anti-entropy would bring the rows, too, only later. So hints are bounded, and
what is beyond is dropped and counted. One file a node, `node/hints/SLOT`, of records:

    size of the name u4 | rows u4 | XXH3-64 of the rest u8 | dataset's name | rows, 48 bytes each

A file is read from its start when its node answers again and removed when all of it was taken.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import ROW_BYTES, ROW_WORDS
from kvmeta.errors import KvmetaError, os_errors

BYTES_MAX = 1 << 30
"""Of all hints on a node."""

_HEAD = struct.Struct("<IIQ")
Rows = NDArray[np.uint64]


class Hint(NamedTuple):
    """Rows for a node, and where in its file they end."""

    dataset: str
    rows: Rows
    end: int


class HintFiles:
    """The hints on this node. Threads may add while one reads."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self.dropped_rows = 0
        """Rows for which there was no room."""
        self._rows: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        with os_errors("listing", path):
            files = sorted(path.iterdir()) if path.exists() else []
        for file in files:
            if file.name.isdigit():
                self._recover(int(file.name))

    def waiting(self) -> dict[int, int]:
        """Return the rows that wait, by node."""
        with self._lock:
            return {slot: rows for slot, rows in self._rows.items() if rows}

    def add(self, slot: int, dataset: str, rows: Rows) -> None:
        """Keep rows u8[n, 6] for a node; drop them where there is no room or no disk."""
        name = dataset.encode()
        rest = name + np.ascontiguousarray(rows).tobytes()
        record = _HEAD.pack(len(name), len(rows), xxhash.xxh3_64_intdigest(rest)) + rest
        with self._lock:
            try:
                if sum(self._bytes.values()) + len(record) > self._bytes_max:
                    raise BufferError
                with os_errors("writing", self._file(slot)), open(self._file(slot), "ab") as file:
                    file.write(record)
            except (BufferError, KvmetaError):
                self.dropped_rows += len(rows)
                with suppress(OSError):  # what was written of it would end all that comes behind
                    os.truncate(self._file(slot), self._bytes.get(slot, 0))
                return
            self._rows[slot] = self._rows.get(slot, 0) + len(rows)
            self._bytes[slot] = self._bytes.get(slot, 0) + len(record)

    def read(self, slot: int, start: int = 0) -> Iterator[Hint]:
        """Yield a node's hints from byte `start` of its file on, oldest first; a damaged one ends them."""
        file = self._file(slot)
        with os_errors("reading", file):
            if file.exists():
                yield from self._read(file, start)

    def _read(self, file: Path, start: int) -> Iterator[Hint]:
        with open(file, "rb") as opened:
            end = start
            opened.seek(start)
            while len(head := opened.read(_HEAD.size)) == _HEAD.size:
                name_bytes, count, told = _HEAD.unpack(head)
                size = name_bytes + count * ROW_BYTES
                if size > self._bytes_max:
                    return
                rest = opened.read(size)
                if len(rest) != size or xxhash.xxh3_64_intdigest(rest) != told:
                    return
                end += _HEAD.size + size
                rows = np.frombuffer(rest, np.uint64, count * ROW_WORDS, name_bytes).reshape(count, ROW_WORDS)
                yield Hint(rest[:name_bytes].decode(), rows, end)

    def done(self, slot: int, end: int) -> bool:
        """Remove a node's hints up to `end` where nothing came behind; return whether that is so."""
        with self._lock:
            if self._bytes.get(slot, 0) > end:
                return False
            with os_errors("removing", self._file(slot)):
                self._file(slot).unlink(missing_ok=True)
            self._rows.pop(slot, None)
            self._bytes.pop(slot, None)
            return True

    def _recover(self, slot: int) -> None:
        rows = end = 0
        for hint in self.read(slot):
            rows, end = rows + len(hint.rows), hint.end
        with os_errors("writing", self._file(slot)), open(self._file(slot), "r+b") as file:
            file.truncate(end)  # what was being written when the node died
        self._rows[slot], self._bytes[slot] = rows, end

    def _file(self, slot: int) -> Path:
        return self._path / str(slot)
