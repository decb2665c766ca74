"""Opening: the manifest, the chain of the WAL and the mark, judged together before anything is written.

A log that fails any check is refused as a whole: better no store than one that silently forgot.
"""

from __future__ import annotations

import ctypes
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvmeta.engine import filenames, wal
from kvmeta.engine.manifest import Manifest, TreeRecord
from kvmeta.engine.mark import Mark
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.rocks import Rocks
from kvmeta.engine.run import Run, SegmentFiles
from kvmeta.engine.segment import Segment
from kvmeta.engine.tree import Tree
from kvmeta.engine.wal import Position
from kvmeta.errors import MALFORMED, CorruptionError, FormatError, os_errors
from kvmeta.mixing import DEFAULT_SEED
from kvmeta.version import HybridClock

FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """What KVMETA says: the format, the store's ID (16 bytes) and the seed of its ID bijection."""

    store_id: bytes
    seed: int = DEFAULT_SEED

    def encode(self) -> bytes:
        """Return the file's only valid bytes."""
        fields = {
            "kvmeta": "store",
            "format": FORMAT,
            "store": self.store_id.hex(),
            "seed": f"{self.seed:016x}",
        }
        text = json.dumps(fields)
        return f"{text}\n{xxhash.xxh3_64_hexdigest(text.encode())}\n".encode()


@dataclass
class Recovered:
    """A store's state as its files have it."""

    manifest: Manifest
    trees: dict[int, Tree]
    position: Position
    replayed_rows: int


def new_identity() -> Identity:
    """Return the identity of a new store."""
    return Identity(uuid.uuid4().bytes)


def write_identity(store: Path, identity: Identity) -> None:
    """Write KVMETA, the last step of making a store: whole or not at all."""
    path = filenames.identity(store)
    fresh = path.with_suffix(".new")
    with os_errors("writing", path):
        with open(fresh, "wb") as file:
            file.write(identity.encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        filenames.sync_directory(store)


def read_identity(store: Path) -> Identity:
    """Return the store's identity; FormatError where it has none or a newer one."""
    path = filenames.identity(store)
    with os_errors("reading", path):
        data = path.read_bytes()
    try:
        fields = json.loads(data.decode().split("\n")[0])
        if fields["kvmeta"] != "store":
            raise ValueError("not a kvmeta store")
        found = int(fields["format"])
    except MALFORMED as error:
        raise FormatError(f"{path} is not a kvmeta identity file ({error})") from None
    if found > FORMAT:
        raise FormatError(
            f"{path}: the store has format {found}, this package reads up to {FORMAT}; upgrade kvmeta"
        )
    try:
        identity = Identity(bytes.fromhex(fields["store"]), int(fields["seed"], 16))
    except MALFORMED:
        raise CorruptionError(f"{path} is damaged", path) from None
    if identity.encode() != data:
        raise CorruptionError(f"{path} is damaged", path)
    return identity


def recover(
    store: Path,
    rocks: Rocks,
    mark: Mark,
    files: SegmentFiles,
    clock: HybridClock,
    options: EngineOptions,
    known: dict[int, Segment] | None = None,
) -> Recovered:
    """Return the state of an open log after checking it against itself and against the mark.

    `known`: segments that are open already, by number; a segment is immutable.
    """
    log = filenames.log(store)
    manifest = Manifest.read(rocks.manifest(), log)
    head = manifest.head
    if head.generation < mark.generation:
        raise CorruptionError(
            f"{log}: the manifest is at generation {head.generation}, but {mark.generation} was acknowledged",
            log,
        )
    if head.generation == mark.generation and head.digest != mark.digest:
        raise CorruptionError(f"{log}: the manifest is not the one that was acknowledged", log)
    trees = {}
    for number, dataset in manifest.datasets.items():
        record = manifest.trees.get(number, TreeRecord())
        runs = tuple(Run.open(run, files, known) for run in record.runs)
        trees[number] = Tree(dataset, record, runs, clock, options)
        for run in runs:
            clock.observe(run.highest)
    position, replayed = _replay(rocks, head.anchor, mark, trees, clock, log)
    return Recovered(manifest, trees, position, replayed)


def check_same(rocks: Rocks, state: Recovered, log: Path) -> None:
    """Raise where RocksDB's own recovery, which may rewrite the log, left another state than was judged."""
    last = rocks.last_wal_key()
    sequence = int.from_bytes(last, "big") if last else state.manifest.head.anchor.sequence
    if rocks.manifest() != state.manifest.rows or sequence != state.position.sequence:
        raise CorruptionError(f"{log}: recovery left another state than the log held", log)


def _replay(
    rocks: Rocks, anchor: Position, mark: Mark, trees: dict[int, Tree], clock: HybridClock, log: Path
) -> tuple[Position, int]:
    before, replayed = anchor, 0
    for record in wal.replay(rocks.wal(wal.key(anchor.sequence + 1)), anchor, log):
        position = record.position
        if position.sequence == mark.sequence and position.checksum != mark.chain:
            raise CorruptionError(
                f"{log}: WAL record {mark.sequence} is not the one that was acknowledged", log
            )
        tree = trees.get(record.dataset)  # None: the dataset was dropped since
        if tree is not None and position.sequence > tree.record.flushed and len(record.rows):
            if not tree.reserve(len(record.rows)):
                tree.freeze(len(record.rows))  # the writer's limits may have been larger
                tree.reserve(len(record.rows))
            tree.insert(record.rows, before, replayed)
            clock.observe(int(record.rows[:, 2].max()))
        before = position
        replayed += len(record.rows)
    _trim_heap()
    if before.sequence < mark.sequence:
        raise CorruptionError(
            f"{log}: the WAL ends at record {before.sequence}, but {mark.sequence} was acknowledged", log
        )
    return before, replayed


def _trim_heap() -> None:
    """Give back what a replay's records took: glibc would keep it, some 40 bytes a replayed row."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
