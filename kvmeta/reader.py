"""Reading files through their locations: grouped by volume, sorted, coalesced, in parallel, checked.

Reading costs one request for each *extent*, a stretch of a volume that holds near neighbours; a sorted batch
of small files therefore reads like a few large ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import (
    CorruptionError,
    IncompleteBatchError,
    KvmetaError,
    UnavailableError,
    UnsupportedError,
    os_errors,
)
from kvmeta.volumes import Volume, local_path

GAP_BYTES_MAX = 64 << 10
"""Neighbours at most this far apart are read in one request: skipping costs less than another."""
EXTENT_BYTES_MAX = 8 << 20
THREADS = 8


class Failures:
    """Which rows of a read failed, and the first reason."""

    def __init__(self, n: int) -> None:
        self.failed = np.zeros(n, np.bool_)
        self.first: KvmetaError | None = None

    def add(self, rows: NDArray[np.int64], error: KvmetaError) -> None:
        """Note that `rows` failed with `error`."""
        self.failed[rows] = True
        self.first = self.first or error


def volume_numbers(locations: NDArray[np.void], wanted: NDArray[np.bool_]) -> list[int]:
    """Return the numbers of the volumes that reading `locations` (LOCATION[n]) where `wanted` needs."""
    numbers: list[int] = np.unique(locations["volume"][wanted]).tolist()
    return numbers


def read(
    locations: NDArray[np.void], wanted: NDArray[np.bool_], volumes: Iterable[Volume]
) -> list[bytes | None]:
    """Return the bytes at each of `locations` (LOCATION[n]) where `wanted`, else None.

    `volumes` are those of `volume_numbers`. Files that cannot be read or do not match their checksum raise
    IncompleteBatchError, whose `.failed` names them and whose `.partial` has the others.
    """
    files, failures = _read(locations, wanted, {int(each): each for each in volumes})
    if failures.first is not None:
        count = int(failures.failed.sum())
        message = f"{count} of {len(files)} files could not be read: {failures.first}"
        raise IncompleteBatchError(message, failures.failed, files) from failures.first
    return files


def _read(
    locations: NDArray[np.void], wanted: NDArray[np.bool_], volumes: dict[int, Volume]
) -> tuple[list[bytes | None], Failures]:
    out: list[bytes | None] = [None] * len(locations)
    failures = Failures(len(locations))
    rows = np.flatnonzero(wanted)
    order = rows[np.lexsort((locations["offset"][rows], locations["volume"][rows]))]
    paths, failed_paths = _paths(volumes)
    extents = _extents(locations, order)

    def read_extent(extent: NDArray[np.int64]) -> None:
        number = int(locations["volume"][extent[0]])
        try:
            if number in failed_paths:
                raise failed_paths[number]
            if number not in paths:
                raise UnavailableError(f"volume {number} ({volumes[number].uri}) is offline")
            _read_extent(paths[number], locations, extent, out, failures)
        except KvmetaError as error:
            failures.add(extent, error)

    if len(extents) < 2:
        for extent in extents:
            read_extent(extent)
    else:
        with ThreadPoolExecutor(min(THREADS, len(extents)), "kvmeta-read") as pool:
            list(pool.map(read_extent, extents))
    return out, failures


def _paths(volumes: dict[int, Volume]) -> tuple[dict[int, Path], dict[int, UnsupportedError]]:
    """Return the path of each volume that is online, and why one has none."""
    paths, failed = {}, {}
    for number, each in volumes.items():
        if each.state == "online":
            try:
                paths[number] = local_path(each.uri)
            except UnsupportedError as error:
                failed[number] = error
    return paths, failed


def _extents(locations: NDArray[np.void], order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut the sorted rows where the volume changes, the gap is wide or the stretch grows too long."""
    if not len(order):
        return []
    volume, offset = locations["volume"][order], locations["offset"][order].astype(np.int64)
    first = np.flatnonzero(np.append(True, volume[1:] != volume[:-1]))
    ends = np.split(offset + locations["length"][order], first[1:])
    end = np.concatenate([np.maximum.accumulate(part) for part in ends])  # of all files so far in the volume
    fresh = (volume[1:] != volume[:-1]) | (offset[1:] - end[:-1] > GAP_BYTES_MAX)
    fresh |= offset[1:] // EXTENT_BYTES_MAX != offset[:-1] // EXTENT_BYTES_MAX
    return np.split(order, np.flatnonzero(fresh) + 1)


def _read_extent(
    path: Path,
    locations: NDArray[np.void],
    rows: NDArray[np.int64],
    out: list[bytes | None],
    failures: Failures,
) -> None:
    part = locations[rows]
    start = int(part["offset"].min())
    end = int((part["offset"] + part["length"]).max())
    with os_errors("reading", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = _pread(fd, start, end - start)
        finally:
            os.close(fd)
    for row, (_, length, offset, checksum, _) in zip(rows.tolist(), part.tolist(), strict=True):
        at = offset - start
        file = data[at : at + length]
        where = f"{path}, {length} bytes at {offset}"
        if len(file) < length:
            failures.add(np.array([row]), CorruptionError(f"{where}: the volume ends before", path))
        elif checksum and google_crc32c.value(file) != checksum:
            failures.add(
                np.array([row]), CorruptionError(f"{where}: the bytes do not match their CRC-32C", path)
            )
        else:
            out[row] = file


def _pread(fd: int, start: int, size: int) -> bytes:
    """Return up to `size` bytes at `start`; fewer only at the end of the file."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, start)
        if not part:
            break
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
