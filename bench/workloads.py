"""The workload: a catalogue of tar-packed files, made from a seed, and batches of queries over it.

Every entry is a function of its index: index -> ID, checksum and tag by hashing, so any answer can be checked
without keeping the catalogue. Lengths and offsets come from packing the files one after the other:

    shard 1, about 1 GiB                                   shard 2
    | header 512 | file, padded to 512 | header | file …   | header | file …
                 ^ offset

Indices from 2**40 on are never in a catalogue: their IDs are the absent ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import kvmeta

Ids = NDArray[np.void]
Locations = NDArray[np.void]
Indices = NDArray[np.uint64]
IdKind = Literal["hashed", "sequential", "paths"]
Access = Literal["uniform", "zipf"]

RECIPE = 1
"""Changes when a seed gives another catalogue than before: stores built from the old one are built again."""

SHARD_BYTES = 1 << 30
TAR_BLOCK_BYTES = 512
MEDIAN_BYTES = 64 << 10
SIGMA = 1.0  # of log length: the mean file is 108 KB, one in a thousand is over 1.4 MB
TAGS = 3
ABSENT_FROM = 1 << 40
_BLOCK_ROWS = 65_536
_SCATTER = 2_654_435_761  # a prime


@dataclass(frozen=True)
class Catalogue:
    """A catalogue without end; a store holds its first rows.

    `ids`: random 128-bit numbers ("hashed"), 0, 1, 2 … ("sequential"), or hashes of file names ("paths").
    """

    seed: int = 1
    ids: IdKind = "hashed"

    def ids_of(self, indices: Indices) -> Ids:
        """Return the ID[n] of entries `indices` (u8[n])."""
        if self.ids == "paths":
            return kvmeta.as_ids([f"train/{i >> 12:08x}/{i & 0xFFF:04d}.jpg" for i in indices.tolist()])
        halves = np.zeros((len(indices), 2), np.uint64)
        if self.ids == "sequential":
            halves[:, 1] = indices.byteswap()  # IDs are big-endian
        else:
            halves[:, 0] = self._hash(indices, 1)
            halves[:, 1] = self._hash(indices, 2)
        return halves.view(kvmeta.ID).reshape(-1)

    def checksums_of(self, indices: Indices) -> NDArray[np.uint32]:
        """Return the CRC-32C u4[n] of entries `indices`: as good as random, as real ones are."""
        return (self._hash(indices, 3) >> np.uint64(32)).astype(np.uint32)

    def batches(self, first: int, rows: int, batch_rows: int) -> Iterator[tuple[Ids, Locations]]:
        """Yield entries first … first + rows - 1 as (ids, locations) of up to `batch_rows`.

        The files are packed from a new shard on, numbered after those that `first` entries would have filled.
        """
        volume, used = 1 + first // 8192, 0
        held_ids, held = np.empty(0, kvmeta.ID), np.empty(0, kvmeta.LOCATION)
        for start in range(first, first + rows, _BLOCK_ROWS):
            indices = np.arange(start, min(start + _BLOCK_ROWS, first + rows), dtype=np.uint64)
            locations, volume, used = self._pack(indices, volume, used)
            ids = self.ids_of(indices)
            held_ids = np.concatenate([held_ids, ids]) if len(held) else ids
            held = np.concatenate([held, locations]) if len(held) else locations
            whole = len(held) - len(held) % batch_rows
            for at in range(0, whole, batch_rows):
                yield held_ids[at : at + batch_rows], held[at : at + batch_rows]
            held_ids, held = held_ids[whole:], held[whole:]
        if len(held):
            yield held_ids, held

    def _pack(self, indices: Indices, volume: int, used: int) -> tuple[Locations, int, int]:
        """Return the locations of files packed behind `used` bytes of shard `volume`, and where that ends."""
        random = np.random.default_rng((self.seed, int(indices[0])))
        locations = np.empty(len(indices), kvmeta.LOCATION)
        lengths = np.minimum(random.lognormal(np.log(MEDIAN_BYTES), SIGMA, len(indices)), SHARD_BYTES)
        locations["length"] = lengths.astype(np.uint32)
        locations["checksum"] = self.checksums_of(indices)
        locations["tag"] = self._hash(indices, 4) % np.uint64(TAGS)
        blocks = -(-locations["length"].astype(np.int64) // TAR_BLOCK_BYTES)
        padded = (1 + blocks) * TAR_BLOCK_BYTES  # the header is one more
        ends = np.cumsum(padded)
        done = shift = 0
        while done < len(indices):  # shard by shard; the file that crosses the limit is a shard's last
            end = min(len(indices), int(np.searchsorted(ends, SHARD_BYTES - used + shift)) + 1)
            locations["volume"][done:end] = volume
            locations["offset"][done:end] = ends[done:end] - padded[done:end] - shift + used + TAR_BLOCK_BYTES
            used += int(ends[end - 1]) - shift
            shift, done = int(ends[end - 1]), end
            if used >= SHARD_BYTES:
                volume, used = volume + 1, 0
        return locations, volume, used

    def _hash(self, indices: Indices, which: int) -> Indices:
        """Return splitmix64 of the indices, one function for each `which`."""
        start = (self.seed * 8 + which) * 0x9E3779B97F4A7C15 % (1 << 64)
        mixed = (indices ^ np.uint64(start)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


class Batch(NamedTuple):
    """A batch of queries: ids ID[n], and what a right answer is: indices u8[n], present bool[n]."""

    ids: Ids
    indices: Indices
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Queries:
    """Random batches over the first `rows` entries; `present` is the share of IDs that are there.

    `access`: every entry is as likely as any other, or some are asked much more often (Zipf's law with
    exponent 1, by the continuous inverse of its distribution: rank = rows ** u).
    """

    catalogue: Catalogue
    rows: int
    present: float = 1.0
    access: Access = "uniform"

    def batch(self, random: np.random.Generator, n: int) -> Batch:
        """Return a batch of `n` IDs."""
        if self.access == "zipf":
            ranks = np.power(float(self.rows), random.random(n)).astype(np.uint64) - np.uint64(1)
            indices = ranks * np.uint64(_SCATTER) % np.uint64(self.rows)  # popular ones are no neighbours
        else:
            indices = random.integers(0, self.rows, n, dtype=np.uint64)
        present = random.random(n) < self.present
        indices[~present] += np.uint64(ABSENT_FROM)
        return Batch(self.catalogue.ids_of(indices), indices, present)

    def check(self, batch: Batch, found: NDArray[np.bool_], locations: Locations | None) -> None:
        """Raise AssertionError where an answer is wrong: a wrong store's speed is of no interest."""
        if locations is None:  # of a system that only tells what it holds
            locations = np.zeros(len(found), kvmeta.LOCATION)
            locations["checksum"] = np.where(found, self.catalogue.checksums_of(batch.indices), np.uint32(0))
        expected = np.where(batch.present, self.catalogue.checksums_of(batch.indices), np.uint32(0))
        wrong = (found != batch.present) | (locations["checksum"] != expected)
        if wrong.any():
            raise AssertionError(f"{int(wrong.sum())} of {len(wrong)} IDs were answered wrongly")
