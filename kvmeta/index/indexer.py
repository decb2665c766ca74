r"""Register the members of tar files in a dataset: one volume a file, one entry a member.

    tar file --scan--> Members --IDs--> (ids, locations) --gather--> put, up to 65,536 rows
    \__________ a thread beside __________/                  \_ the caller's thread _/

The scan's kernels and the store's release the GIL, so the next archive is read while a batch is written. The
run may be repeated: the same sources give the same entries, under the same volumes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.errors import InputError, NotFoundError, UnavailableError, os_errors
from kvmeta.ids import ID, IdArray, ids_from_key_column
from kvmeta.index.report import Progress, ProgressCallback, Report
from kvmeta.index.tar import ROWS_MAX, Members, load_kernels, scan
from kvmeta.location import LOCATION

IdRule = Literal["name", "path", "content"]
_PIECE_BYTES = 1 << 22
_TAG_MAX = 0xFFFFFFFF


class Target(Protocol):
    """What the run needs of a dataset."""

    def put(self, ids: Any, locations: Any, /) -> Any:
        """Store the batch."""


class VolumeRegister(Protocol):
    """What the run needs of a store's volumes."""

    def add(self, uri: str, /) -> int:
        """Return the number of the volume at `uri`, registering it if it is new."""


_Batch = tuple[Path, Members, IdArray]
"""Members of one tar with their IDs, on the way from the scanning thread to the store."""
_Batches = Generator[_Batch, None, None]


def index(
    dataset: Target,
    volumes: VolumeRegister,
    sources: str | Path | Iterable[str | Path],
    *,
    id: IdRule = "name",  # noqa: A002 - the word the command line uses
    tag: int = 0,
    checksums: bool = True,
    progress: ProgressCallback | None = None,
) -> Report:
    """Register every regular file in the tar files of `sources` in `dataset`.

    A source is a tar file or a directory, searched with its subdirectories for *.tar. Each tar becomes a
    volume under the file URI of its absolute path (symbolic links stay as they are). The ID of a member is

        "name"     the key of its name in the archive
        "path"     the key of "<tar file name>/<member name>": for shards that repeat names
        "content"  XXH3-128 of its bytes, canonical big-endian: equal files become one entry

    `tag` (u4) is written to each location; with `checksums=False` the members' bytes are not read and their
    checksums are 0 (unknown). `progress` is called in the caller's thread after each batch.

    Raises InputError for a wrong argument or a directory without *.tar, NotFoundError for a missing source,
    what `kvmeta.index.scan` raises, and what the dataset's put raises. What was put before an error stays.
    """
    started = time.monotonic()
    if id not in get_args(IdRule):
        raise InputError(f'id: expected "name", "path" or "content", got {id!r}')
    if not 0 <= tag <= _TAG_MAX:
        raise InputError(f"tag: expected an integer in [0, 2**32), got {tag}")
    paths = tar_files(sources)
    with os_errors("reading the size of", "the sources"):
        sizes = {path: path.stat().st_size for path in paths}
    total, before = sum(sizes.values()), 0  # `before`: bytes of the archives that are done
    files = length = skipped = batches = volume = 0
    gathered = _Gathered()
    current: Path | None = None
    for path, members, ids in _ahead(_batches(paths, id, checksums)):
        if path != current:
            before += sizes[current] if current else 0
            current, volume = path, int(volumes.add(path.as_uri()))
        if gathered.rows + len(members) > ROWS_MAX:
            dataset.put(*gathered.take())
            batches += 1
        gathered.add(ids, _locations(members, volume, tag))
        files += len(members)
        length += int(members.lengths.sum())
        skipped += members.skipped
        if progress is not None:
            within = int(members.offsets[-1] + members.lengths[-1]) if len(members) else 0
            progress(Progress(before + within, total, files))
    if gathered.rows:
        dataset.put(*gathered.take())
        batches += 1
    if progress is not None:
        progress(Progress(total, total, files))
    return Report(files, len(paths), length, skipped, batches, time.monotonic() - started)


def tar_files(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the absolute paths of the tar files that `sources` name, in order, each once."""
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would follow symbolic links
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*.tar") if each.is_file())
            if not inside:
                raise InputError(f"{source}: no *.tar file in this directory or below")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise NotFoundError(f"{source}: no such file or directory")
    if not found:
        raise InputError("sources: expected at least one tar file or directory")
    return list(found)


class _Gathered:
    """Rows of several small archives on their way into one put."""

    def __init__(self) -> None:
        self.rows = 0
        self._parts: list[tuple[IdArray, NDArray[np.void]]] = []

    def add(self, ids: IdArray, locations: NDArray[np.void]) -> None:
        self.rows += len(ids)
        self._parts.append((ids, locations))

    def take(self) -> tuple[IdArray, NDArray[np.void]]:
        ids, locations = zip(*self._parts, strict=True)
        self.rows, self._parts = 0, []
        return np.concatenate(ids), np.concatenate(locations)


def _locations(members: Members, volume: int, tag: int) -> NDArray[np.void]:
    locations = np.empty(len(members), LOCATION)
    locations["volume"], locations["tag"] = volume, tag
    locations["length"], locations["offset"] = members.lengths, members.offsets
    locations["checksum"] = members.checksums
    return locations


def _batches(paths: Sequence[Path], id_rule: IdRule, checksums: bool) -> _Batches:
    for path in paths:
        met = False
        for members in scan(path, checksums=checksums):
            met = True
            yield path, members, _ids(path, members, id_rule)
        if not met:  # an empty archive is a volume all the same
            yield path, _NO_MEMBERS, np.empty(0, ID)


_NO_MEMBERS = Members(
    np.empty(0, np.uint8),
    np.empty(0, np.int64),
    np.empty(0, np.uint64),
    np.empty(0, np.uint64),
    np.empty(0, np.uint32),
    0,
)


def _ids(path: Path, members: Members, id_rule: IdRule) -> IdArray:
    if id_rule == "content":
        return _content_ids(path, members)
    names, ends = members.names, members.name_ends
    if id_rule == "path":
        prefix = np.frombuffer(os.fsencode(path.name) + b"/", np.uint8)
        names, ends = load_kernels().with_prefix(names, ends, prefix)
    return ids_from_key_column(names, ends)


def _content_ids(path: Path, members: Members) -> IdArray:
    """Hash the members' bytes; the scan has just read them, so they come from the page cache."""
    digests = []
    with os_errors("reading", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset, length in zip(members.offsets.tolist(), members.lengths.tolist(), strict=True):
                digests.append(_digest(path, fd, offset, length))
        finally:
            os.close(fd)
    return np.frombuffer(b"".join(digests), ID)


def _digest(path: Path, fd: int, offset: int, length: int) -> bytes:
    state = xxhash.xxh3_128()
    while length:
        piece = os.pread(fd, min(length, _PIECE_BYTES), offset)
        if not piece:
            raise UnavailableError(f"{path} became shorter while it was read; run again")
        state.update(piece)
        offset += len(piece)
        length -= len(piece)
    return bytes(state.digest())


def _ahead(batches: _Batches) -> Iterator[_Batch]:
    """Yield what `batches` yields, each next one made in a thread while the caller works on this one."""
    end: Any = object()
    with ThreadPoolExecutor(1, "kvmeta-scan") as pool:
        coming = pool.submit(next, batches, end)
        try:
            while (batch := coming.result()) is not end:
                coming = pool.submit(next, batches, end)
                yield batch
        finally:
            coming.cancel()
            pool.submit(batches.close).result()
