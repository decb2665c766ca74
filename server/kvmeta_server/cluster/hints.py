"""Hinted handoff: rows that a node did not take wait on this node's disk until it does.

A hint is no acknowledgement; anti-entropy would bring the rows, too, only later. So hints are bounded, and
what is beyond is dropped and counted. One file a node, `node/hints/SLOT`, of records:

    size of the name u4 | rows u4 | XXH3-64 of the rest u8 | dataset's name | rows, 48 bytes each

A file is read from its start when its node answers again and removed when all of it was taken. A damaged
record is passed over where its head still says how long it is; else the file is cut before it.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import ROW_BYTES, ROW_WORDS
from kvmeta.errors import KvmetaError
from kvmeta_server.cluster.seams import Disk, Events, Hint

BYTES_MAX = 1 << 30
"""Of all hints on a node."""

_HEAD = struct.Struct("<IIQ")
_NAME_BYTES_MAX = 1 << 10
_DIRECTORY = "hints"
Rows = NDArray[np.uint64]


class HintFiles:
    """The hints on this node. Threads may add while one reads."""

    def __init__(self, disk: Disk, bytes_max: int = BYTES_MAX, log: Events | None = None) -> None:
        self._disk = disk
        self._bytes_max = bytes_max
        self._log = log
        self._lock = threading.Lock()
        self.dropped_rows = 0
        """Rows for which there was no room, or that are damaged."""
        self._told = False
        self._rows: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._counted: dict[int, int] = {}  # up to where in each file what is damaged was counted
        for name in disk.names(_DIRECTORY):
            if name.isdigit():
                self._recover(int(name))

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
                self._disk.append(_file(slot), record)
            except (BufferError, KvmetaError) as error:
                self._drop(
                    slot, len(rows), str(error) or f"there are {self._bytes_max} bytes of hints already"
                )
                with suppress(KvmetaError):  # what was written of it would end all that comes behind
                    self._disk.truncate(_file(slot), self._bytes.get(slot, 0))
                return
            self._rows[slot] = self._rows.get(slot, 0) + len(rows)
            self._bytes[slot] = self._bytes.get(slot, 0) + len(record)

    def read(self, slot: int, start: int = 0) -> Iterator[Hint]:
        """Yield a node's hints from byte `start` of its file on, oldest first."""
        end = start
        while head := self._disk.read(_file(slot), end, _HEAD.size):
            whole = self._bytes.get(slot, 0)
            if end >= whole:  # it is being written
                return
            name_bytes, count, told = _HEAD.unpack(head.ljust(_HEAD.size, b"\0"))
            size = name_bytes + count * ROW_BYTES
            if not 0 < name_bytes <= _NAME_BYTES_MAX or size > whole - end - _HEAD.size:
                self._cut(slot, end)
                return
            rest = self._disk.read(_file(slot), end + _HEAD.size, size) or b""
            end += _HEAD.size + size
            name = _text(rest[:name_bytes]) if xxhash.xxh3_64_intdigest(rest) == told else ""
            if not name:
                self._count(slot, end, count)
                yield Hint("", np.empty((0, ROW_WORDS), np.uint64), end)
                continue
            rows = np.frombuffer(rest, np.uint64, count * ROW_WORDS, name_bytes).reshape(count, ROW_WORDS)
            yield Hint(name, rows, end)

    def done(self, slot: int, end: int) -> bool:
        """Remove a node's hints up to `end` where nothing came behind; return whether that is so."""
        with self._lock:
            if self._bytes.get(slot, 0) > end:
                return False
            self._disk.remove(_file(slot))
            self._told = False  # there is room again
            self._rows.pop(slot, None)
            self._bytes.pop(slot, None)
            self._counted.pop(slot, None)
            return True

    def _recover(self, slot: int) -> None:
        rows = end = 0
        self._bytes[slot] = self._disk.size(_file(slot))
        for hint in self.read(slot):
            if hint.dataset:
                rows, end = rows + len(hint.rows), hint.end
        self._disk.truncate(_file(slot), end)
        self._rows[slot], self._bytes[slot], self._counted[slot] = rows, end, end

    def _cut(self, slot: int, end: int) -> None:
        """Cut a file before a record that leads nowhere: torn when the node died, or its head is damaged."""
        with self._lock:
            self._drop(slot, (self._bytes[slot] - end) // ROW_BYTES, "a hint is damaged")
            self._disk.truncate(_file(slot), end)
            self._bytes[slot] = end

    def _count(self, slot: int, end: int, rows: int) -> None:
        """Count a damaged record, the first time it is met."""
        with self._lock:
            if end > self._counted.get(slot, 0):
                self._counted[slot] = end
                self._drop(slot, rows, "a hint is damaged")

    def _drop(self, slot: int, rows: int, reason: str) -> None:
        """Count rows that are dropped; say so where it begins."""
        self.dropped_rows += rows
        if rows and not self._told and self._log is not None:
            self._told = True
            self._log.warning("hints dropped", node=slot, rows=rows, reason=reason)


def _text(raw: bytes) -> str:
    """Return a dataset's name; an empty one where it is no text."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""


def _file(slot: int) -> str:
    return f"{_DIRECTORY}/{slot}"
