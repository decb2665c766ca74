"""Every error kvmeta raises, in one small tree.

    KvmetaError
    ├── InputError (ValueError)        the call's arguments are wrong; nothing was done
    ├── NotFoundError (KeyError)       no such store, dataset or volume (an absent file ID is not an error)
    ├── StoreLockedError               another process writes this store
    ├── FormatError                    not a kvmeta store, or one of a newer format
    ├── CorruptionError                bytes on disk are not what was written: .path, .ranges
    ├── StorageFullError               no space left; the store takes no more writes until it is reopened
    ├── ReadOnlyError                  a write through a read-only handle or to a read-only directory
    ├── UnavailableError               the device or the peer did not answer; try again or elsewhere
    ├── DeadlineError (TimeoutError)   no answer in time
    ├── OutcomeUnknownError            a write may or may not have taken effect
    ├── IncompleteBatchError           part of a batch could be answered: .failed, .partial
    ├── UnsupportedError               this kind of store cannot do that
    └── EngineNotInstalledError        the embedded engine's packages are missing

A class of its own exists only where a caller would act differently.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HashRange = tuple[int, int]
"""First and last mixed ID (128-bit integers, both inclusive) of a damaged stretch."""


class KvmetaError(Exception):
    """The root of every error this package raises.

    `failed` is None, or bool[n] over the IDs of the call: True where the operation is not acknowledged.
    """

    failed: NDArray[np.bool_] | None = None

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InputError(KvmetaError, ValueError):
    """The arguments are wrong: type, shape, length or value. Nothing was done."""


class NotFoundError(KvmetaError, KeyError):
    """A store, dataset or volume that does not exist was named."""


class StoreLockedError(KvmetaError):
    """Another process (or another handle of this one) holds the store's writer lock."""


class FormatError(KvmetaError):
    """The directory is not a kvmeta store, or its format is newer than this package."""


class CorruptionError(KvmetaError):
    """Bytes on disk are not what was written.

    `path` is the damaged file; `ranges` the (first, last) mixed IDs whose entries may be lost.
    """

    def __init__(self, message: str, path: str | Path = "", ranges: Sequence[HashRange] = ()) -> None:
        super().__init__(message)
        self.path = str(path)
        self.ranges: tuple[HashRange, ...] = tuple(ranges)


class StorageFullError(KvmetaError):
    """The device is full. The store takes no more writes until it is reopened; reads go on."""


class ReadOnlyError(KvmetaError):
    """A write was asked of a read-only handle, directory or file system."""


class UnavailableError(KvmetaError):
    """The device or peer did not do its work; what was asked may succeed later or elsewhere."""


class DeadlineError(KvmetaError, TimeoutError):
    """No answer within the deadline."""


class OutcomeUnknownError(KvmetaError):
    """The write may or may not have taken effect; `failed` names the IDs.

    `partial` is the result for the others, of the type the call returns; None where there is none.
    """

    partial: Any = None


class IncompleteBatchError(KvmetaError):
    """Part of a batch could not be answered.

    `failed` is bool[n]; `partial` the result for the rest, of the type the call returns.
    """

    def __init__(self, message: str, failed: NDArray[np.bool_], partial: Any) -> None:
        super().__init__(message)
        self.failed = failed
        self.partial = partial


class UnsupportedError(KvmetaError):
    """This kind of store, URI or file cannot do what was asked."""


class EngineNotInstalledError(KvmetaError):
    """The embedded engine's packages are missing; the message names the pip command."""


MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading JSON of an unknown shape may raise."""


def from_os_error(error: OSError, doing: str, path: str | Path) -> KvmetaError:
    """Return the KvmetaError that tells of an OSError met while `doing` something to `path`."""
    reason = f"{doing} {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(f"{reason}. Free space on the device, then open the store again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyError(f'{reason}. Check the permissions, or open with mode="r"')
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"{reason}. Check the path")
    return UnavailableError(reason)


@contextmanager
def os_errors(doing: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into the KvmetaError that names `path` and what was being done."""
    if "\0" in str(path):
        raise InputError(f"{doing} {str(path)!r}: a path cannot hold a NUL character")
    try:
        yield
    except OSError as error:
        if isinstance(error, KvmetaError):  # DeadlineError is a TimeoutError and so an OSError
            raise
        raise from_os_error(error, doing, path) from error
