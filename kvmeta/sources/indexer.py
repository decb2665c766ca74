r"""Register the members of tar files in a dataset: one volume a file, one entry a member.

    tar file --scan--> Members --IDs--> (ids, locations) --gather--> put, up to 65,536 rows
    \__________ a thread beside __________/                  \_ the caller's thread _/

The scan's kernels and the store's release the GIL, so the next archive is read while a batch is written, here
or by a server. The run may be repeated: the same sources give the same entries, under the same volumes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.errors import InputError, KvmetaError, NotFoundError, UnavailableError, os_errors
from kvmeta.ids import ID, IdArray, ids_from_key_column
from kvmeta.location import LOCATION
from kvmeta.sources.kinds import is_source, kind_of
from kvmeta.sources.report import Progress, ProgressCallback, Report
from kvmeta.sources.source import ROWS_MAX, Members
from kvmeta.sources.tar import load_kernels

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


_Batch = tuple[Path, Members | None, IdArray]
"""Members of one tar with their IDs, on the way from the scanning thread to the store; None: its end."""
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
        "path"     the key of "<tar>/<member name>": for shards that repeat names. <tar> is the path of the
                   tar below the source it was found in, or its file name where it is itself a source
        "content"  XXH3-128 of its bytes, canonical big-endian: equal files become one entry

    `tag` (u4) is written to each location; with `checksums=False` the members' bytes are not read and their
    checksums are 0 (unknown). `progress` is called in the caller's thread after each batch.

    The dataset may be embedded or a server's; the tars are read, and their paths are those, of this machine.

    Raises InputError for a wrong argument, a directory without *.tar, or two tars of one <tar> with "path";
    NotFoundError for a missing source; what `kvmeta.sources.scan` raises, and what the dataset's put raises.
    An error ends the run, but the tars read to their end before it are put all the same, and its message
    (on a KeyboardInterrupt a note) says how much is registered: at least how much where a put failed, for
    part of it may have taken effect.
    """
    started = time.monotonic()
    if id not in get_args(IdRule):
        raise InputError(f'id: expected "name", "path" or "content", got {id!r}')
    if not 0 <= tag <= _TAG_MAX:
        raise InputError(f"tag: expected an integer in [0, 2**32), got {tag}")
    tars = tar_files(sources, id)
    paths = list(tars)
    with os_errors("reading the size of", "the sources"):
        sizes = {path: path.stat().st_size for path in paths}
    total, before = sum(sizes.values()), 0  # `before`: bytes of the archives that are done
    files = length = skipped = volume = 0
    gathered = _Gathered(dataset)
    current: Path | None = None
    with closing(_ahead(_batches(tars, id, checksums))) as scanned, gathered.kept_on_failure():
        for path, members, ids in scanned:
            if path != current:
                current, volume = path, int(volumes.add(path.as_uri()))
            if members is None:
                gathered.end_tar()
                before += sizes[path]
                continue
            if gathered.rows + len(members) > ROWS_MAX:
                gathered.put()
            gathered.add(ids, _locations(members, volume, tag))
            files += len(members)
            length += int(members.lengths.sum())
            skipped += members.skipped
            if progress is not None:
                within = int(members.offsets[-1] + members.lengths[-1]) if len(members) else 0
                progress(Progress(before + within, total, files))
        gathered.put()
    if progress is not None:
        progress(Progress(total, total, files))
    return Report(files, len(paths), length, skipped, gathered.batches, time.monotonic() - started)


def tar_files(
    sources: str | Path | Iterable[str | Path],
    id: IdRule = "name",  # noqa: A002 - as above
) -> dict[Path, str]:
    """Return the tar files that `sources` name, in order, each once: absolute path -> path below its source.

    A tar that several sources name belongs to the first. InputError where the rule `id` is "path" and two
    tars have the same path below their sources.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found: dict[Path, str] = {}
    for source in sources:
        path = Path(os.path.abspath(source))  # noqa: PTH100 - resolve() would follow symbolic links
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if is_source(each) and each.is_file())
            if not inside:
                raise InputError(f"{source}: no *.tar file in this directory or below")
            for each in inside:
                found.setdefault(each, str(each.relative_to(path)))
        elif path.exists():
            found.setdefault(path, path.name)
        else:
            raise NotFoundError(f"{source}: no such file or directory")
    if not found:
        raise InputError("sources: expected at least one tar file or directory")
    if id == "path":
        owners: dict[str, Path] = {}
        for path, prefix in found.items():
            other = owners.setdefault(prefix, path)
            if other != path:
                raise InputError(
                    f"{other} and {path}: the IDs of both would be of {prefix}/...; "
                    "name the directory above them as the source"
                )
    return found


class _Gathered:
    """Rows of several small archives on their way into one put, and what was put so far."""

    def __init__(self, dataset: Target) -> None:
        self.rows = self.batches = 0
        self._dataset = dataset
        self._parts: list[tuple[IdArray, NDArray[np.void]]] = []
        self._whole = 0  # parts of archives that are read to their end
        self._tars = self._open = 0  # archives begun by the parts, of them all; 1 = the last has not ended
        self._registered = (0, 0)  # files, tars
        self._refused = False

    def add(self, ids: IdArray, locations: NDArray[np.void]) -> None:
        """Take rows of the archive at hand."""
        if len(ids):
            self._parts.append((ids, locations))
            self.rows += len(ids)
            self._open = 1

    def end_tar(self) -> None:
        """Note that the archive at hand was read to its end."""
        self._whole = len(self._parts)
        self._tars, self._open = self._tars + self._open, 0

    def put(self) -> None:
        """Put what is held; it is held until the dataset has it, so that Ctrl-C in between loses nothing."""
        if not self.rows:
            return
        ids, locations = zip(*self._parts, strict=True)
        try:
            self._dataset.put(np.concatenate(ids), np.concatenate(locations))
        except Exception:
            self._refused = True
            raise
        self._registered = (self._registered[0] + self.rows, self._tars + self._open)
        self.batches += 1
        self.rows, self._whole, self._parts = 0, 0, []

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Where the block fails, put the archives that were read to their end, and let the error say so."""
        try:
            yield
        except BaseException as error:
            if not self._refused:
                with suppress(Exception):  # the error that brought us here comes first
                    self._put_whole()
            files, tars = self._registered
            told = (
                f"{'at least ' if self._refused else ''}"
                f"{files:,} file{'' if files == 1 else 's'} of {tars:,} tar{'' if tars == 1 else 's'} "
                f"{'is' if files == 1 else 'are'} registered; run it again"
            )
            if isinstance(error, KvmetaError):
                error.args = (f"{str(error).rstrip('.')}. {told} after mending", *error.args[1:])
            else:
                error.add_note(told)
            raise

    def _put_whole(self) -> None:
        del self._parts[self._whole :]
        self.rows = sum(len(ids) for ids, _ in self._parts)
        if self.rows:
            self._open = 0
            self.put()


def _locations(members: Members, volume: int, tag: int) -> NDArray[np.void]:
    locations = np.empty(len(members), LOCATION)
    locations["volume"], locations["tag"] = volume, tag
    locations["length"], locations["offset"] = members.lengths, members.offsets
    locations["checksum"] = members.checksums
    return locations


def _batches(tars: Mapping[Path, str], id_rule: IdRule, checksums: bool) -> _Batches:
    for path, prefix in tars.items():
        for members in kind_of(path).scan(path, checksums=checksums):
            yield path, members, _ids(path, prefix, members, id_rule)
        yield path, None, np.empty(0, ID)


def _ids(path: Path, tar: str, members: Members, id_rule: IdRule) -> IdArray:
    if id_rule == "content":
        return _content_ids(path, members)
    names, ends = members.names, members.name_ends
    if id_rule == "path":
        prefix = np.frombuffer(os.fsencode(tar) + b"/", np.uint8)
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


def _ahead(batches: _Batches) -> _Batches:
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
