"""Pack directories of small files into tar shards.

    photos/a.jpg, photos/b/c.jpg  --pack-->  shard-000000.tar: photos/a.jpg, photos/b/c.jpg

The order is that of the names, depth first, so equal directories give equal shards. A shard is written under
a temporary name beside its place, synced and renamed: under its final name it is always whole. Owners and
modes are left out; the time of last change is kept, in whole seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvmeta.errors import (
    InputError,
    KvmetaError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    from_os_error,
    os_errors,
)
from kvmeta.sources.report import Progress, ProgressCallback, Report

SHARD_BYTES = 1 << 30
_FILE_BYTES_MAX = (1 << 32) - 1  # a location's length is u4
_BLOCK = 512
_REPORT_FILES = 1_000  # files between two calls of `progress`


def pack(
    directories: str | Path | Sequence[str | Path],
    into: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    name: str = "shard",
    overwrite: bool = False,
    skip_unreadable: bool = False,
    progress: ProgressCallback | None = None,
) -> Report:
    """Write the regular files under `directories` to `into`/<name>-000000.tar and so on.

    Members are named relative to the directory's parent: <directory name>/<path below it>. A shard is closed
    before it would grow beyond `shard_bytes`; a larger file gets a shard to itself. Symbolic links (never
    followed), sockets and devices are counted as skipped, and so is what cannot be read with
    `skip_unreadable`. `progress` is called now and then; it does not know the total.

    Raises InputError for a wrong argument, for two directories of one name, and where `into` holds shards of
    this name already (with `overwrite` they are replaced one by one, and once all are written those beyond
    the new last number are removed, for an index run would register the old bytes in them); NotFoundError
    for a missing directory; UnsupportedError for a file of 4 GiB or more; and what the operating system's
    error means where a file cannot be read or a shard not be written.
    """
    started = time.monotonic()
    roots = _roots([directories] if isinstance(directories, (str, Path)) else directories, Path(into))
    if shard_bytes < 2 * _BLOCK:
        raise InputError(f"shard_bytes: expected at least {2 * _BLOCK}, got {shard_bytes}")
    if not re.fullmatch(r"[^/\0]+", name):
        raise InputError(f"name: expected a file name, got {name!r}")
    folder = Path(into)
    with os_errors("making", folder):
        folder.mkdir(parents=True, exist_ok=True)
        taken = sorted(each.name for each in folder.iterdir() if _is_shard(each.name, name))
    if taken and not overwrite:
        raise InputError(f"{folder} holds {taken[0]} already; choose another directory or name, or overwrite")

    walk = _Walk(roots, skip_unreadable)
    files = length = shards = 0
    shard: _Shard | None = None
    try:
        for path, member in walk.files():
            found = walk.open(path)
            if found is None:
                continue
            with found:
                if shard is not None and not shard.has_room(found.size, shard_bytes):
                    shard.finish()
                    shard = None
                if shard is None:
                    shard = _Shard(folder / _shard_name(name, shards))
                    shards += 1
                if not shard.add(member, found, skip_unreadable):
                    walk.skipped += 1
                    continue
            files += 1
            length += found.size
            if progress is not None and files % _REPORT_FILES == 0:
                progress(Progress(length, 0, files))
        if shard is not None:
            shard.finish()
            shard = None
        _remove_beyond(shards, folder, name, taken)
    except BaseException:
        if shard is not None:
            shard.abandon()
        raise
    if progress is not None:
        progress(Progress(length, 0, files))
    return Report(files, shards, length, walk.skipped, 0, time.monotonic() - started)


def _is_shard(file_name: str, name: str) -> bool:
    return re.fullmatch(re.escape(name) + r"-\d{6,}\.tar", file_name) is not None


def _shard_name(name: str, number: int) -> str:
    return f"{name}-{number:06d}.tar"


def _remove_beyond(shards: int, folder: Path, name: str, taken: Sequence[str]) -> None:
    """Remove those of the shards `taken` before the run that have a number of `shards` or more."""
    for file_name in taken:
        number = int(file_name.removesuffix(".tar").rpartition("-")[2])
        if number >= shards and file_name == _shard_name(name, number):
            with os_errors("removing", folder / file_name):
                (folder / file_name).unlink(missing_ok=True)
    with os_errors("syncing", folder):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _roots(directories: Sequence[str | Path], into: Path) -> list[Path]:
    """Return the directories as absolute paths, checked against each other and against `into`."""
    if not directories:
        raise InputError("directories: expected at least one")
    roots: dict[str, Path] = {}
    target = into.resolve()
    for directory in directories:
        root = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow symbolic links
        if not root.is_dir():
            raise NotFoundError(f"{directory}: no such directory")
        if not root.name:
            raise InputError(f"{directory}: a directory without a name cannot name its members")
        if root.name in roots:
            raise InputError(f"{roots[root.name]} and {root}: both would name their members {root.name}/...")
        if target.is_relative_to(root.resolve()):
            raise InputError(f"{into} lies in {directory}; shards must go outside of what is packed")
        roots[root.name] = root
    return list(roots.values())


@dataclass
class _Found:
    """One open file on its way into a shard."""

    path: Path
    fd: int
    size: int
    changed_s: int

    def __enter__(self) -> _Found:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class _Walk:
    """The regular files below some directories, in order, and how many other things were met."""

    def __init__(self, roots: Sequence[Path], skip_unreadable: bool) -> None:
        self.roots = roots
        self.skip_unreadable = skip_unreadable
        self.skipped = 0

    def files(self) -> Iterator[tuple[Path, str]]:
        """Yield (path, member name); what is neither a regular file nor a directory is counted."""
        for root in self.roots:
            stack = [iter(self._entries(root, root.name))]
            while stack:
                entry = next(stack[-1], None)
                if entry is None:
                    stack.pop()
                elif entry[2]:
                    stack.append(iter(self._entries(entry[0], entry[1])))
                else:
                    yield entry[0], entry[1]

    def open(self, path: Path) -> _Found | None:
        """Open one file; None (and counted) where it cannot be read and that is to be passed over."""
        try:
            # Neither flag matters for the regular file that was listed, only for what took its place since.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(fd)
        except OSError as error:
            self._unreadable(error, path)
            return None
        if status.st_size > _FILE_BYTES_MAX:
            os.close(fd)
            if not self.skip_unreadable:
                raise UnsupportedError(
                    f"{path} has {status.st_size:,} bytes; files of 4 GiB or more are refused"
                )
            self.skipped += 1
            return None
        return _Found(path, fd, status.st_size, int(status.st_mtime))

    def _entries(self, folder: Path, member: str) -> list[tuple[Path, str, bool]]:
        """Return the (path, member name, is a directory) in one directory, by name."""
        entries = []
        try:
            with os.scandir(folder) as listing:
                for each in listing:
                    is_folder = each.is_dir(follow_symlinks=False)
                    if is_folder or each.is_file(follow_symlinks=False):
                        entries.append((folder / each.name, f"{member}/{each.name}", is_folder))
                    else:
                        self.skipped += 1
        except OSError as error:
            self._unreadable(error, folder)
        entries.sort(key=lambda entry: os.fsencode(entry[1]))
        return entries

    def _unreadable(self, error: OSError, path: Path) -> None:
        if not self.skip_unreadable:
            raise _read_error(error, path) from error
        self.skipped += 1


class _Shard:
    """One tar under its temporary name, until `finish` gives it its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with os_errors("writing", self.partial):
            self._file = open(self.partial, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by finish/abandon
            self._tar = tarfile.TarFile(
                fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT, copybufsize=1 << 20
            )

    def has_room(self, size: int, shard_bytes: int) -> bool:
        """Tell whether a member of `size` bytes may still be added."""
        whole = -(-size // _BLOCK) * _BLOCK
        return not self._file.tell() or self._file.tell() + _BLOCK + whole <= shard_bytes

    def add(self, member: str, found: _Found, skip_unreadable: bool) -> bool:
        """Append one member; False where it could not be read (and the shard is as it was before)."""
        entry = tarfile.TarInfo(member)
        entry.size, entry.mtime = found.size, found.changed_s
        start = self._file.tell()
        source = _Source(found)
        with os_errors("writing", self.partial):
            try:
                self._tar.addfile(entry, source)
            except _UnreadableError as error:
                if not skip_unreadable:
                    raise error.reason from error.reason.__cause__
                self._file.seek(start)
                self._file.truncate()
                self._tar.offset = start
                return False
        self._tar.getmembers().clear()  # tarfile would remember every member for as long as it is open
        return True

    def finish(self) -> None:
        """Sync the shard and give it its final name."""
        with os_errors("writing", self.path):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.partial.replace(self.path)
            _sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written; a shard that has its final name stays."""
        with contextlib.suppress(OSError):  # the error that brought us here says more
            self._file.close()
        self.partial.unlink(missing_ok=True)


class _UnreadableError(Exception):
    """A file could not be read to its end."""

    def __init__(self, reason: KvmetaError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Source:
    """A file as tarfile reads it, which tells the reader's errors from the writer's."""

    def __init__(self, found: _Found) -> None:
        self._found = found
        self._left = found.size

    def read(self, n: int = 1 << 16, /) -> bytes:
        """Return n bytes, fewer only at the end; raises _UnreadableError where there are fewer."""
        wanted = min(n, self._left)
        pieces = bytearray()
        while len(pieces) < wanted:
            try:
                piece = os.read(self._found.fd, wanted - len(pieces))
            except OSError as error:
                reason = _read_error(error, self._found.path)
                reason.__cause__ = error
                raise _UnreadableError(reason) from error
            if not piece:
                message = f"{self._found.path} became shorter while it was packed; run again"
                raise _UnreadableError(UnavailableError(message))
            pieces += piece
        self._left -= wanted
        return bytes(pieces)


def _read_error(error: OSError, path: Path) -> KvmetaError:
    if isinstance(error, PermissionError):  # not the store's mode: the advice of from_os_error would mislead
        return UnavailableError(
            f"reading {path}: {error.strerror}. Check its permissions, or skip such files"
        )
    return from_os_error(error, "reading", path)
