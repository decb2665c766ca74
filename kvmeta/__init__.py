"""kvmeta: a batched metadata store for billions of small files.

import numpy as np, kvmeta

with kvmeta.open("./catalog") as store:
    ds = store.dataset()
    ids = kvmeta.ids_from_keys(["train/0001.jpg", "train/0002.jpg"])
    locations = np.zeros(2, kvmeta.LOCATION)
    ds.put(ids, locations)
    hit = ds.lookup(ids)  # hit.found, hit.locations, hit.versions: columns
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from kvmeta.batch import Hits, Inserted, Outcome, Relocated, ScanPage
from kvmeta.errors import (
    CorruptionError,
    DeadlineError,
    EngineNotInstalledError,
    FormatError,
    IncompleteBatchError,
    InputError,
    KvmetaError,
    NotFoundError,
    OutcomeUnknownError,
    ReadOnlyError,
    StorageFullError,
    StoreLockedError,
    UnavailableError,
    UnsupportedError,
)
from kvmeta.ids import ID, as_ids, ids_from_hex, ids_from_ints, ids_from_keys, ids_from_uuids, ids_to_hex
from kvmeta.location import LOCATION, Location
from kvmeta.store import Damage, Dataset, DatasetStats, Store, StoreStats, VerifyReport
from kvmeta.version import Version, split
from kvmeta.volumes import Volume, Volumes

if TYPE_CHECKING:
    from kvmeta import aio
    from kvmeta.client.options import ClientOptions
    from kvmeta.engine.options import EngineOptions

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")  # read when grpc is imported, by whomever

__version__ = "0.1.0"

split_version = split

__all__ = [
    "ID",
    "LOCATION",
    "ClientOptions",
    "CorruptionError",
    "Damage",
    "Dataset",
    "DatasetStats",
    "DeadlineError",
    "EngineNotInstalledError",
    "FormatError",
    "Hits",
    "IncompleteBatchError",
    "InputError",
    "Inserted",
    "KvmetaError",
    "Location",
    "NotFoundError",
    "Outcome",
    "OutcomeUnknownError",
    "ReadOnlyError",
    "Relocated",
    "ScanPage",
    "StorageFullError",
    "Store",
    "StoreLockedError",
    "StoreStats",
    "UnavailableError",
    "UnsupportedError",
    "VerifyReport",
    "Version",
    "Volume",
    "Volumes",
    "__version__",
    "aio",
    "as_ids",
    "ids_from_hex",
    "ids_from_ints",
    "ids_from_keys",
    "ids_from_uuids",
    "ids_to_hex",
    "open",
    "split_version",
]


def __getattr__(name: str) -> Any:
    if name == "ClientOptions":  # imports grpc, which embedded users need not wait for
        from kvmeta.client.options import ClientOptions

        return ClientOptions
    if name == "aio":
        return importlib.import_module("kvmeta.aio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open(  # noqa: A001 - kvmeta.open is the name users expect
    target: str | os.PathLike[str],
    mode: str = "a",
    *,
    options: EngineOptions | ClientOptions | None = None,
) -> Store:
    """Open the store at `target`: a directory, or "kvmeta://host:port" for a server.

    mode "a": made if missing, one writer; "r": never creates, any number beside the writer, the state at open
    (`refresh` reads it anew, and a fork may go on using it); "x": must not exist yet. A server is there or it
    is not: "a" writes, "r" refuses to. `options` are EngineOptions for a directory, ClientOptions for a
    server. Raises KvmetaError: FormatError, StoreLockedError, CorruptionError, NotFoundError,
    UnavailableError, ….
    """
    if not isinstance(target, (str, os.PathLike)) or not os.fspath(target):
        raise InputError(f'open: expected the path of a directory or "kvmeta://host:port", got {target!r}')
    text = os.fspath(target)
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme and scheme != "kvmeta":
        raise UnsupportedError(
            f"{text}: cannot open a {scheme}:// store; give the path of a directory or kvmeta://host:port"
        )
    if scheme:
        from kvmeta.client.options import ClientOptions
        from kvmeta.remote import RemoteStore

        if options is not None and not isinstance(options, ClientOptions):
            raise _other_options("ClientOptions for a server", options)
        return RemoteStore(text, mode, options)
    missing = [name for name in ("numba", "rocksdict") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineNotInstalledError(
            f'opening {text} needs {" and ".join(missing)}; run: pip install "kvmeta[engine]"'
        )
    from kvmeta.embedded import EmbeddedStore
    from kvmeta.engine.options import EngineOptions

    if options is not None and not isinstance(options, EngineOptions):
        raise _other_options("EngineOptions for a directory", options)
    return EmbeddedStore(text, mode, options)


def _other_options(wanted: str, got: object) -> InputError:
    return InputError(f"options: expected {wanted}, got {type(got).__name__}")
