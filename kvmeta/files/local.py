"""Files read from this machine's file systems: an extent at a time, in parallel, each file checked."""

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
from kvmeta.files import plan
from kvmeta.volumes import Volume, local_path

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


def read(
    locations: NDArray[np.void], wanted: NDArray[np.bool_], volumes: Iterable[Volume]
) -> list[bytes | None]:
    """Return the bytes at each of `locations` (LOCATION[n]) where `wanted`, else None.

    `volumes` are those of `plan.volume_numbers`. Files that cannot be read or do not match their checksum
    raise IncompleteBatchError, whose `.failed` names them and whose `.partial` has the others.
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
    paths = {number: _path(each) for number, each in volumes.items()}
    extents = plan.extents(locations, wanted)

    def read_extent(extent: NDArray[np.int64]) -> None:
        path = paths[int(locations["volume"][extent[0]])]
        if isinstance(path, KvmetaError):
            failures.add(extent, path)
            return
        try:
            _read_extent(path, locations, extent, out, failures)
        except KvmetaError as error:
            failures.add(extent, error)

    if len(extents) < 2:
        for extent in extents:
            read_extent(extent)
    else:
        with ThreadPoolExecutor(min(THREADS, len(extents)), "kvmeta-read") as pool:
            list(pool.map(read_extent, extents))
    return out, failures


def _path(volume: Volume) -> Path | KvmetaError:
    """Return the path of a volume, or why it cannot be read."""
    if volume.state != "online":
        return UnavailableError(f"volume {int(volume)} ({volume.uri}) is {volume.state}")
    if volume.codec != "raw":
        return UnsupportedError(
            f"volume {int(volume)} ({volume.uri}): codec {volume.codec!r} is not read yet"
        )
    try:
        return local_path(volume.uri)
    except UnsupportedError as error:
        return error


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
