"""What a node remembers of the cluster, below its data directory: docs/format.md has the bytes.

    node/NODE           who it is: cluster, name, slot; how far its clock may have stamped
    node/MAP            the newest map it has seen, so that it goes on without etcd, and never back in time
    node/TABLES         the newest tables it has seen: datasets, and which numbers are taken
    node/volumes/P      the pages of volumes
    node/COPIED         for each partition, the epoch of the change for which its copy is done
    node/LEFTOVER       partitions of which rows are here that it owns no more
    node/ranges/NAME    of a dataset: what it promised not to take, and up to where all owners agreed

Every file is one JSON header or array and its checksum, replaced whole.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.errors import CorruptionError, FormatError
from kvmeta_server.cluster.cluster_map import ClusterMap, decode
from kvmeta_server.cluster.seams import Disk
from kvmeta_server.cluster.tables import Tables, decode_tables

_SUM_BYTES = 8
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Identity:
    """Who a node is. No stamp of it has reached the version `ceiling`; `starts` numbers its last start."""

    cluster_id: str
    cluster: str
    name: str
    slot: int
    ceiling: int = 0
    starts: int = 0


class NodeState:
    """The files below `node/` of a data directory, which `disk` is."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._identity: Identity | None = None
        self._ranges: dict[str, Ranges] = {}
        self._left: NDArray[np.bool_] | None = None
        raw = _read(self._disk, "NODE")
        if raw is not None:
            try:
                self._identity = msgspec.json.decode(raw, type=Identity)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                raise _damaged(self._disk.where("NODE")) from None

    @property
    def identity(self) -> Identity | None:
        """Return who this node is; None for a data directory that was never in a cluster."""
        return self._identity

    def set_identity(self, identity: Identity) -> None:
        """Remember who this node is."""
        with self._lock:
            _write(self._disk, "NODE", json.dumps(asdict(identity)).encode())
            self._identity = identity

    def reserve(self, version: int) -> None:
        """Remember that stamps may come up to `version`."""
        assert self._identity is not None
        self.set_identity(replace(self._identity, ceiling=version))

    def begin(self, at_least: int) -> int:
        """Give this start its number, durably: above that of the last, and no lower than `at_least`."""
        assert self._identity is not None
        number = max(self._identity.starts + 1, at_least)
        self.set_identity(replace(self._identity, starts=number))
        return number

    def map(self) -> ClusterMap | None:
        """Return the newest map this node has seen."""
        raw = _read(self._disk, "MAP")
        return None if raw is None else decode(raw)

    def set_map(self, cluster_map: ClusterMap) -> None:
        """Remember a map."""
        with self._lock:
            _write(self._disk, "MAP", cluster_map.encode())

    def tables(self) -> Tables | None:
        """Return the newest tables this node has seen."""
        raw = _read(self._disk, "TABLES")
        return None if raw is None else decode_tables(raw)

    def set_tables(self, tables: Tables) -> None:
        """Remember tables."""
        with self._lock:
            _write(self._disk, "TABLES", tables.encode())

    def volumes(self) -> dict[int, bytes]:
        """Return the pages of volumes this node has seen, by number."""
        names = [name for name in self._disk.names("volumes") if name.isdigit()]
        return {int(name): _read(self._disk, f"volumes/{name}") or b"" for name in names}

    def set_volumes(self, page: int, raw: bytes) -> None:
        """Remember a page of volumes."""
        with self._lock:
            _write(self._disk, f"volumes/{page}", raw)

    def copied(self, partitions: int) -> Words:
        """Return u8[P]: for which change of each partition its copy is done here; 0 for none."""
        raw = _read(self._disk, "COPIED")
        return (
            np.zeros(partitions, np.uint64)
            if raw is None
            else _column(raw, self._disk.where("COPIED"), partitions, "<u8")
        )

    def set_copied(self, copied: Words) -> None:
        """Remember which copies are done."""
        with self._lock:
            _write(self._disk, "COPIED", copied.tobytes())

    def leftover(self, partitions: int) -> NDArray[np.bool_]:
        """Return bool[P]: whether rows of a partition may be here that this node does not own any more."""
        with self._lock:
            if self._left is None:
                raw = _read(self._disk, "LEFTOVER")
                self._left = (
                    np.zeros(partitions, np.bool_)
                    if raw is None
                    else _column(raw, self._disk.where("LEFTOVER"), partitions, "u1").astype(np.bool_)
                )
            return self._left.copy()

    def add_leftover(self, lost: NDArray[np.bool_]) -> None:
        """Note that rows of partitions stay behind here."""
        left = self.leftover(len(lost)) | lost
        self._set_leftover(left)

    def clear_leftover(self, gone: NDArray[np.bool_]) -> None:
        """Note that rows of partitions are dropped."""
        self._set_leftover(self.leftover(len(gone)) & ~gone)

    def _set_leftover(self, left: NDArray[np.bool_]) -> None:
        with self._lock:
            _write(self._disk, "LEFTOVER", left.tobytes())
            self._left = left

    def ranges(self, dataset: str, partitions: int) -> Ranges:
        """Return what is remembered of a dataset's partitions."""
        with self._lock:
            if dataset not in self._ranges:
                self._ranges[dataset] = Ranges(self._disk, f"ranges/{dataset}", partitions)
            return self._ranges[dataset]

    def forget(self, dataset: str) -> None:
        """Forget a dataset."""
        with self._lock:
            self._ranges.pop(dataset, None)
            self._disk.remove(f"ranges/{dataset}")


class Ranges:
    """Of each partition of a dataset: `promised` and `agreed`, versions (u8[P])."""

    def __init__(self, disk: Disk, name: str, partitions: int) -> None:
        self._disk, self._name = disk, name
        self._lock = threading.Lock()
        raw = _read(disk, name)
        both = np.zeros(2 * partitions, np.uint64)
        if raw is not None:
            both = _column(raw, disk.where(name), 2 * partitions, "<u8")
        self.promised, self.agreed = both[:partitions].copy(), both[partitions:].copy()
        self.compared = np.zeros(partitions, np.uint64)
        """The cuts of the last comparisons since this node started."""

    def promised_of(self, partitions: NDArray[np.int64]) -> Words:
        """Return what is promised now, u8[m]."""
        return self.promised[partitions]

    def agreed_of(self, partitions: NDArray[np.int64]) -> Words:
        """Return up to where all owners are known to have agreed, u8[m]."""
        return self.agreed[partitions]

    def promise(self, partitions: NDArray[np.int64], version: int) -> None:
        """Promise, durably, to take no row up to `version` that is not held."""
        self._raise("promised", partitions, version)

    def compare(self, partitions: NDArray[np.int64], cut: int) -> None:
        """Note up to where partitions are being compared."""
        self.compared[partitions] = cut

    def agree(self, partitions: NDArray[np.int64], version: int) -> None:
        """Note, durably, that all owners agreed up to `version`."""
        self._raise("agreed", partitions, version)

    def reset(self, partitions: NDArray[np.int64], promised: Words, agreed: Words) -> None:
        """Take over what the owners of copied partitions have."""
        with self._lock:
            self.promised = _with(self.promised, partitions, promised)
            self.agreed = _with(self.agreed, partitions, agreed)
            self._write()

    def _raise(self, name: str, partitions: NDArray[np.int64], version: int) -> None:
        with self._lock:
            column: Words = getattr(self, name)
            if (column[partitions] < np.uint64(version)).any():
                higher = np.maximum(column[partitions], np.uint64(version))
                setattr(self, name, _with(column, partitions, higher))  # readers see the one or the other
                self._write()

    def _write(self) -> None:
        _write(self._disk, self._name, self.promised.tobytes() + self.agreed.tobytes())


def _with(column: Words, places: NDArray[np.int64], values: Words) -> Words:
    out = column.copy()
    out[places] = values
    return out


def _column(raw: bytes, where: str, count: int, dtype: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    if len(raw) != size * count:
        raise FormatError(
            f"{where}: {len(raw) // size} entries, expected {count}: was it of another cluster?"
        )
    return np.frombuffer(raw, dtype).copy()


def _damaged(where: str) -> CorruptionError:
    return CorruptionError(f"{where} is damaged; restore it, or wipe the node and let it join anew", where)


def _read(disk: Disk, name: str) -> bytes | None:
    data = disk.read(name)
    if data is None:
        return None
    raw, told = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if len(data) < _SUM_BYTES or xxhash.xxh3_64_digest(raw) != told:
        raise _damaged(disk.where(name))
    return raw


def _write(disk: Disk, name: str, raw: bytes) -> None:
    disk.replace(name, raw + xxhash.xxh3_64_digest(raw))
