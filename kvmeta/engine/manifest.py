"""The manifest: which datasets, runs, segments and volumes a store has. Every change is one atomic batch.

Rows of RocksDB's default column family, values in JSON, but for pages of volumes (docs/format.md):

    dataset/%08x   name and options      tree/%08x   flushed WAL sequence, runs, merges under way
    volumes/%08x   a page of volumes     head        generation, digest, next numbers, WAL anchor

`digest` is the sum (mod 2**64) of XXH3-64 over each other row, and `generation` counts changes: a manifest
that lost a row, or went back in time, is noticed at open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from kvmeta.engine.rocks import Batch
from kvmeta.engine.segment_header import SegmentRecord
from kvmeta.engine.wal import WAL_START, Position
from kvmeta.errors import MALFORMED, CorruptionError

_HEAD = b"head"
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class DatasetRecord:
    """A dataset's name and its options, fixed at creation."""

    number: int
    name: str
    ttl_s: float | None = None
    bottom_filter: bool = False


@dataclass(frozen=True)
class RunRecord:
    """A run: segments in hash order. Of IDs whose high half is below `from_high` it is no source any more."""

    number: int
    bottom: bool
    from_high: int
    segments: tuple[SegmentRecord, ...]
    damaged: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Damaged row pages by segment number (none: the whole file). A run that has any is quarantined: it is
    neither merged nor dropped."""

    @property
    def rows(self) -> int:
        """Return the rows of its segments."""
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True)
class MergeRecord:
    """A merge under way: the output run covers mixed IDs whose high half is below `frontier`.

    `discard`: what is damaged in the inputs is given up. `drop`: stretches of high halves (first and last, in
    order, disjoint) whose rows are left out.
    """

    inputs: tuple[int, ...]
    output: int
    bottom: bool
    frontier: int = 0
    discard: bool = False
    drop: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class TreeRecord:
    """What a dataset's tree is on disk. WAL records up to `flushed` are in its runs."""

    flushed: int = 0
    runs: tuple[RunRecord, ...] = ()
    merges: tuple[MergeRecord, ...] = ()


@dataclass(frozen=True)
class Head:
    """The row that makes the others one state."""

    generation: int = 0
    digest: int = 0
    next_file: int = 1
    next_dataset: int = 1
    next_volume: int = 1
    anchor: Position = WAL_START
    """WAL records up to here are trimmed; the chain starts behind it."""


@dataclass
class Change:
    """What a change sets; None removes."""

    datasets: dict[int, DatasetRecord | None] = field(default_factory=dict)
    trees: dict[int, TreeRecord | None] = field(default_factory=dict)
    volume_pages: dict[int, bytes] = field(default_factory=dict)
    next_volume: int = 0
    """The next volume's number where it rises."""
    anchor: Position | None = None


@dataclass(frozen=True)
class Prepared:
    """A change, the head after it and the batch that makes both durable."""

    change: Change
    head: Head
    batch: Batch


class Manifest:
    """The manifest in memory, always equal to the last change made durable.

    `prepare` makes a change's batch and the manifest after it; the caller writes, syncs, then `accept`s.
    Callers hold the engine's manifest lock around the three.
    """

    def __init__(self) -> None:
        self.head = Head()
        self.datasets: dict[int, DatasetRecord] = {}
        self.trees: dict[int, TreeRecord] = {}
        self.volume_pages: dict[int, bytes] = {}
        """Pages of volumes, which are for whoever stores them to read."""
        self.next_file = 1  # may run ahead of the head's: numbers taken by files not installed yet
        self._rows: dict[bytes, bytes] = {}

    @staticmethod
    def read(rows: Mapping[bytes, bytes], path: Path) -> Manifest:
        """Return the manifest of RocksDB's `rows`; CorruptionError where they are not one whole state."""
        manifest = Manifest()
        try:
            head = json.loads(rows[_HEAD])
            manifest.head = Head(**{**head, "anchor": Position(*head["anchor"])})
            for key, value in rows.items():
                if key != _HEAD:
                    manifest._enter(key, value)
        except MALFORMED as error:
            raise CorruptionError(f"{path}: the manifest is damaged ({error!r})", path) from error
        digest = sum(_digest(key, value) for key, value in rows.items() if key != _HEAD) & _MASK
        if digest != manifest.head.digest:
            raise CorruptionError(f"{path}: rows of the manifest are missing or damaged", path)
        manifest.next_file = manifest.head.next_file
        return manifest

    @property
    def rows(self) -> dict[bytes, bytes]:
        """Return the rows of RocksDB that hold this state."""
        return {**self._rows, _HEAD: _json(self.head)}

    def take_file_number(self) -> int:
        """Return a number no file or run of this store has."""
        number, self.next_file = self.next_file, self.next_file + 1
        return number

    def prepare(self, change: Change) -> Prepared:
        """Return what makes `change`: its batch and the head after it."""
        rows = _encode(change)
        digest = self.head.digest
        for key, value in rows.items():
            if key in self._rows:
                digest -= _digest(key, self._rows[key])
            if value is not None:
                digest += _digest(key, value)
        anchor = change.anchor or self.head.anchor
        head = replace(
            self.head,
            generation=self.head.generation + 1,
            digest=digest & _MASK,
            next_file=self.next_file,
            next_dataset=max(self.head.next_dataset, max(change.datasets, default=0) + 1),
            next_volume=max(self.head.next_volume, change.next_volume),
            anchor=anchor,
        )
        batch = Batch(manifest={**rows, _HEAD: _json(head)})
        if anchor.sequence > self.head.anchor.sequence:
            batch.wal_trim = (bytes(8), (anchor.sequence + 1).to_bytes(8, "big"))
        return Prepared(change, head, batch)

    def accept(self, prepared: Prepared) -> None:
        """Take over a change that is durable."""
        self.head = prepared.head
        for key, value in prepared.batch.manifest.items():
            if value is None:
                self._rows.pop(key, None)
            elif key != _HEAD:
                self._rows[key] = value
        _update(self.datasets, prepared.change.datasets)
        _update(self.trees, prepared.change.trees)
        self.volume_pages.update(prepared.change.volume_pages)

    def _enter(self, key: bytes, value: bytes) -> None:
        kind, number = key.split(b"/")
        self._rows[key] = value
        if kind == b"dataset":
            self.datasets[int(number, 16)] = DatasetRecord(**json.loads(value))
        elif kind == b"tree":
            self.trees[int(number, 16)] = _tree(json.loads(value))
        elif kind == b"volumes":
            self.volume_pages[int(number, 16)] = value
        else:
            raise ValueError(f"a row of no kind that is known: {key!r}")


def _encode(change: Change) -> dict[bytes, bytes | None]:
    tables: list[tuple[str, Mapping[int, Any]]] = [("dataset", change.datasets), ("tree", change.trees)]
    rows: dict[bytes, bytes | None] = {
        f"{kind}/{number:08x}".encode(): None if record is None else _json(record)
        for kind, records in tables
        for number, record in records.items()
    }
    return rows | {f"volumes/{page:08x}".encode(): raw for page, raw in change.volume_pages.items()}


def _json(record: Any) -> bytes:
    return json.dumps(asdict(record)).encode()


def _update(table: dict[int, Any], records: Mapping[int, Any]) -> None:
    for number, record in records.items():
        if record is None:
            table.pop(number, None)
        else:
            table[number] = record


def _tree(fields: dict[str, Any]) -> TreeRecord:
    runs = tuple(
        RunRecord(
            number=run["number"],
            bottom=run["bottom"],
            from_high=run["from_high"],
            segments=tuple(SegmentRecord(**segment) for segment in run["segments"]),
            damaged={int(number): tuple(pages) for number, pages in run["damaged"].items()},
        )
        for run in fields["runs"]
    )
    merges = tuple(_merge(merge) for merge in fields["merges"])
    return TreeRecord(fields["flushed"], runs, merges)


def _merge(fields: dict[str, Any]) -> MergeRecord:
    drop = tuple((first, last) for first, last in fields.get("drop", ()))
    return MergeRecord(**{**fields, "inputs": tuple(fields["inputs"]), "drop": drop})


def _digest(key: bytes, value: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(key + b"\0" + value))
