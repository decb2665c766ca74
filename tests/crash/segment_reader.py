"""A reader for faults of segments: it opens only what is damaged, and judges only what it has not seen yet.

Where the log is not what was damaged, a fresh reader would do nothing else that another did not do. And what
a store answers of a segment depends on what has come of the segment when it was opened and verified: two
faults of which the same has come, all other bytes being as they were, have the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import xxhash

from kvmeta.embedded import EmbeddedStore
from kvmeta.engine import engine
from kvmeta.engine import mark as marks
from kvmeta.engine.kernels.layout import BLOCK_BYTES
from kvmeta.engine.page import PAGE_BYTES
from kvmeta.engine.rocks import Rocks
from kvmeta.engine.segment import Segment
from kvmeta.engine.segment_header import directory_bytes
from tests.crash.faults import Fault
from tests.crash.small import MANUAL, open_store


class LogReadOnce:
    """Stands in for `Rocks` where the log is not what was damaged: most of a reader's time goes there."""

    def __init__(self, log: Path) -> None:
        with Rocks(log, read_only=True) as rocks:
            self._manifest, self._wal = rocks.manifest(), list(rocks.wal(b""))

    def __call__(self, _: Path, *, read_only: bool) -> LogReadOnce:
        assert read_only
        return self

    def __enter__(self) -> LogReadOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def manifest(self) -> dict[bytes, bytes]:
        """Return the manifest's rows."""
        return dict(self._manifest)

    def wal(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the WAL's records from key `first` on."""
        return (record for record in self._wal if record[0] >= first)


class SegmentReader:
    """A reader of the store at `store`, undamaged now; `ask` returns whether its answers tell of damage."""

    def __init__(self, store: Path, ask: Callable[[EmbeddedStore], bool]) -> None:
        self._store = open_store(store, "r", options=MANUAL)
        self._log = LogReadOnce(store / "log")
        self._ask = ask
        self._whole = {
            segment.record.number: segment
            for tree in self._store.engine.trees.values()
            for segment in tree.view.segments
        }
        self._seen: dict[tuple[object, ...], bool] = {}

    def notices(self, fault: Fault) -> bool:
        """Return whether the store's answers, judged, tell of `fault`, which was done to its segments."""
        paths = {self._store.engine.path / file for file in fault.files}
        damaged = [segment for segment in self._whole.values() if segment.path in paths]
        come_of_it = tuple(self._outcome(segment) for segment in damaged)
        if come_of_it not in self._seen:
            self._seen[come_of_it] = self._judged({segment.record.number for segment in damaged})
        return self._seen[come_of_it]

    def _judged(self, damaged: set[int]) -> bool:
        whole = {number: each for number, each in self._whole.items() if number not in damaged}
        with (
            mock.patch.object(engine, "Rocks", self._log),
            mock.patch.object(marks, "check_seal", _unchecked),
            mock.patch.object(self._store.engine, "_open_segments", whole.copy),
        ):
            self._store.refresh()
        return self._ask(self._store)

    def _outcome(self, known: Segment) -> tuple[object, ...]:
        """Return what comes of a segment: its number, the pages it names damaged, and all the others' bytes.

        Of one that is lost nothing is used.
        """
        segment = self._store.engine.files.open(known.record, None)
        number = known.record.number
        if segment.damage:
            return number, "lost"
        data = bytearray(segment.path.read_bytes())
        rows = [page + 1 for page in segment.verify(0, len(segment.states))]
        tables = segment.verify_tables()
        for page in (*rows, *(page for table in tables for page in _pages_of(segment, table))):
            data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
        return number, tuple(rows), tuple(tables), xxhash.xxh3_64_intdigest(data)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def _pages_of(segment: Segment, table: str) -> Iterator[int]:
    """Yield the pages of a segment that `Segment.verify_tables` names."""
    header = segment.header
    offset, size = {
        "header": (0, PAGE_BYTES),
        "footer": (segment.record.file_bytes - PAGE_BYTES, PAGE_BYTES),
        "bucket directory": (int(header["directory_offset"]), directory_bytes(header)),
        "filter": (int(header["filter_offset"]), int(header["filter_blocks"]) * BLOCK_BYTES),
    }[table]
    yield from range(offset // PAGE_BYTES, -(-(offset + size) // PAGE_BYTES))


def _unchecked(*_: object) -> None:
    """Stand in for a check of what is undamaged."""
