"""LMDB through py-lmdb: a B+ tree of 16-byte keys and 24-byte values in one mapped file.

Keys of a batch are sorted, so that neighbours share pages of the tree. The database is one of fixed-size
duplicates though no key has two: only then does `getmulti` answer with one buffer instead of a list of pairs
(0.75 against 0.64 M IDs/s at 2 M entries, on as much disk).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import kvmeta
from bench.systems.system import (
    Batches,
    Client,
    Columns,
    Ids,
    Locations,
    Place,
    System,
    halves,
    matched,
    package_version,
)

_MAP_BYTES = 64 << 30  # address space, not memory
_APPEND_ROWS = 65_536
_PAIR = np.dtype([("id", kvmeta.ID), ("location", kvmeta.LOCATION)])


class LmdbClient(Client):
    """An environment; `address` is its directory."""

    def __init__(self, address: Path) -> None:
        import lmdb

        address.mkdir(parents=True, exist_ok=True)
        self._environment: Any = lmdb.open(str(address), map_size=_MAP_BYTES, max_dbs=1, readahead=False)
        self._entries = self._environment.open_db(b"entries", dupsort=True, dupfixed=True)

    def lookup(self, ids: Ids) -> Columns:
        """Return the locations of `ids` by one getmulti of sorted keys."""
        keys = ids[np.argsort(halves(ids))].tolist()
        with self._environment.begin(self._entries) as transaction, transaction.cursor() as cursor:
            got = cursor.getmulti(
                keys, dupdata=True, dupfixed_bytes=_PAIR["location"].itemsize, keyfixed=True
            )
        rows = np.frombuffer(got, _PAIR)
        return matched(ids, rows["id"], rows["location"])

    def put(self, ids: Ids, locations: Locations) -> None:
        """Write a sorted batch in one synced transaction."""
        order = np.argsort(halves(ids))
        pairs = zip(ids[order].tolist(), locations.view("V24")[order].tolist(), strict=True)
        with (
            self._environment.begin(self._entries, write=True) as transaction,
            transaction.cursor() as cursor,
        ):
            cursor.putmulti(pairs)

    def warm(self) -> bool:
        """Read every page."""
        with self._environment.begin(self._entries) as transaction, transaction.cursor() as cursor:
            for _ in cursor.iternext(keys=True, values=True):
                pass
        return True

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()


class Lmdb(System):
    """LMDB, in process."""

    key, name = "lmdb", "LMDB (py-lmdb)"
    client = LmdbClient
    threads = (2,)
    packages = ("lmdb",)

    def version(self) -> str:
        """Return the versions of binding and library."""
        import lmdb

        return f"{package_version('lmdb')}, library {'.'.join(map(str, lmdb.version()))}"

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Name the directory: the client opens it."""
        yield Place(directory / "environment")

    def build(self, directory: Path, batches: Batches) -> None:
        """Append all entries in the order of their keys: full pages, the smallest tree there can be."""
        import lmdb

        ready = list(batches)
        ids = np.concatenate([ids for ids, _ in ready])
        locations = np.concatenate([locations for _, locations in ready]).view("V24")
        order = np.argsort(halves(ids))
        path = directory / "environment"
        path.mkdir(parents=True)
        environment: Any = lmdb.open(str(path), map_size=_MAP_BYTES, max_dbs=1)
        entries = environment.open_db(b"entries", dupsort=True, dupfixed=True)
        with environment.begin(entries, write=True) as transaction, transaction.cursor() as cursor:
            for start in range(0, len(order), _APPEND_ROWS):
                part = order[start : start + _APPEND_ROWS]
                cursor.putmulti(zip(ids[part].tolist(), locations[part].tolist(), strict=True), append=True)
        environment.close()
