"""The small files of a cluster's node (docs/format.md, node/) as a specimen for damage.

*Detected* means that reading a file raises, or that a hint is not handed out: hints acknowledge nothing, and
anti-entropy brings the rows. A hint handed out for another node than it was kept for is harmless: who does
not own its rows refuses them, and they go to their owners (`Node._replay`). Two faults that these
files cannot tell are left out: a file that is gone (it may never have been written), and a whole file in the
place of another (its checksum does not name it).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import kvmeta
from kvmeta.engine.kernels.layout import ROW_WORDS
from kvmeta.protocol.volume_pages import VolumePages
from kvmeta.volumes import VolumeRow
from kvmeta_server.cluster.cluster_map import Member, found
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.node_state import Identity, NodeState
from kvmeta_server.cluster.tables import Tables
from tests.crash import faults
from tests.crash.faults import Fault
from tests.crash.specimens import DETECTED, HARMLESS, WrongError, files_of

PARTITIONS = 512  # ranges of two datasets have two pages each, hints one
DATASETS = ("default", "other@2")
SLOTS = (1, 2)

Contents = dict[str, bytes | None]
Hints = list[tuple[str, bytes]]


def _files(data: Path) -> tuple[NodeState, HintFiles]:
    """Open the files of the node whose data lie in `data`."""
    disk = FileDisk(data / "node")
    return NodeState(disk), HintFiles(disk)


def build(directory: Path) -> None:
    """Make the specimen below `directory`."""
    rng = np.random.default_rng(20_240_319)
    state, hints = _files(directory / "node")
    state.set_identity(Identity("5a" * 16, "prod", "n1", 5))
    state.reserve(1 << 60)
    state.set_map(found("prod", bytes(range(16)), Member(0, "n1", "h:1"), partitions=PARTITIONS))
    tables = Tables(bytes(range(16))).with_dataset("gone", ttl_s=None, bottom_filter=False)
    tables = tables.without_dataset("gone").with_dataset("other", ttl_s=None, bottom_filter=True)
    state.set_tables(tables.with_volumes(300))
    rows = [VolumeRow(number, f"s3://bucket/{number}", f"{number}") for number in range(1, 301)]
    for page, raw in VolumePages().pages_with(rows).items():
        state.set_volumes(page, raw)
    state.set_copied(rng.integers(0, 9, PARTITIONS).astype(np.uint64))
    state.add_leftover(rng.random(PARTITIONS) < 0.1)
    for name in DATASETS:
        partitions = np.arange(PARTITIONS)
        versions = rng.integers(1, 1 << 60, (2, PARTITIONS)).astype(np.uint64)
        state.ranges(name, PARTITIONS).reset(partitions, *versions)
    for slot in SLOTS:
        for name in (*DATASETS, DATASETS[0]):
            rows = rng.integers(0, 1 << 63, (30, ROW_WORDS)).astype(np.uint64)
            hints.add(slot, name, rows)


class NodeSpecimen:
    """The node's files below `directory`, as `build` made them."""

    state = "node"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._root = directory / "node"

    def files(self) -> list[str]:
        """Return the files whose faults are tried."""
        return files_of(self._root)

    def kind_of(self, file: str) -> str:
        """Return a file's kind."""
        parent = file.split("/")[-2]
        return f"node/{parent}" if parent != "node" else file

    def faults(self, file: str) -> Iterator[Fault]:
        """Yield every fault of a file."""
        data = (self._root / file).read_bytes()
        alike = [name for name in self.files() if Path(name).parent == Path(file).parent != Path("node")]
        siblings = {name: (self._root / name).read_bytes() for name in alike if name > file}
        twin = bool(alike) and file != alike[0]  # of the same form as the first, whose bytes are all tried
        yield from faults.bytewise(file, data, 16 if twin else 1)
        yield from (fault for fault in faults.whole(file, data) if fault.kind != "removed")
        yield from faults.swaps(file, data, siblings)

    def judge(self) -> NodeJudge:
        """Return who judges damaged copies of it."""
        return NodeJudge(self._directory)


class NodeJudge:
    """Does faults to a copy of the node's files and judges what is read from them."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "node"
        self._copy = directory / f"node-copy-{os.getpid()}"
        shutil.copytree(self._root, self._copy)
        self._contents = _contents(*_files(self._copy))
        self._hints = {slot: _hints(_files(self._copy)[1], slot) for slot in SLOTS}

    def __call__(self, fault: Fault) -> str:
        """Return the verdict over a fault; WrongError says what is wrong."""
        fault.do(self._copy)
        try:
            return self._verdict()
        finally:
            for file in fault.files:
                shutil.copyfile(self._root / file, self._copy / file)

    def _verdict(self) -> str:
        try:
            state, hints = _files(self._copy)
            contents = _contents(state, hints)
        except (kvmeta.CorruptionError, kvmeta.FormatError):
            return DETECTED
        for name in self._contents:
            if contents[name] != self._contents[name]:
                raise WrongError(f"{name} is not what was written")
        left_out = False
        kept = [hint for each in self._hints.values() for hint in each]
        for slot, expected in self._hints.items():
            before = _hints(hints, slot)
            if any(hint not in kept for hint in before):
                raise WrongError(f"a hint for node {slot} is not one that was kept")
            left_out |= len(before) < len(expected)
            hints.add(slot, "default", np.zeros((1, ROW_WORDS), np.uint64))
            if _hints(_files(self._copy)[1], slot) != [*before, ("default", bytes(8 * ROW_WORDS))]:
                raise WrongError(f"a hint for node {slot} that was added after the damage is not there")
            shutil.copyfile(
                self._root / "node" / "hints" / str(slot), self._copy / "node" / "hints" / str(slot)
            )
        return DETECTED if left_out else HARMLESS

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self._copy, ignore_errors=True)


def _contents(state: NodeState, hints: HintFiles) -> Contents:
    """Return everything but the hints."""
    cluster_map = state.map()
    out: Contents = {
        "NODE": repr(state.identity).encode(),
        "MAP": None if cluster_map is None else cluster_map.encode(),
        "TABLES": None if (tables := state.tables()) is None else tables.encode(),
        "COPIED": state.copied(PARTITIONS).tobytes(),
        "LEFTOVER": state.leftover(PARTITIONS).tobytes(),
    }
    out |= {f"volumes/{page}": raw for page, raw in state.volumes().items()}
    for name in DATASETS:
        ranges = state.ranges(name, PARTITIONS)
        out[f"ranges/{name}"] = ranges.promised.tobytes() + ranges.agreed.tobytes()
    return out


def _hints(hints: HintFiles, slot: int) -> Hints:
    return [(hint.dataset, hint.rows.tobytes()) for hint in hints.read(slot) if hint.dataset]
