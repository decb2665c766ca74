"""Volumes: what a location's number stands for. Moving one changes one row and no entry.

The rules are here, once: which rows may be added, and how one may change. A kind of store keeps the rows.
"""

from __future__ import annotations

import builtins
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload
from urllib.parse import unquote, urlsplit

from kvmeta.errors import InputError, NotFoundError, UnsupportedError

T = TypeVar("T", bound=str)
Several = list[str] | list[Path] | list[str | Path] | tuple[str | Path, ...]
"""URIs or paths; a str is a sequence of strings, too, and is meant as one."""
VOLUME_MAX = (1 << 32) - 1
State = Literal["online", "offline", "retired"]
STATES: tuple[State, ...] = ("online", "offline", "retired")
"""Online: it can be read. Offline: not for now. Retired: never again; its files live on in other volumes."""
Codec = Literal["raw", "gzip", "deflate", "zstd"]
CODECS: tuple[Codec, ...] = ("raw", "gzip", "deflate", "zstd")
"""How each file in a volume is stored: as it is, or compressed by itself."""


@dataclass(frozen=True)
class VolumeRow:
    """A volume as it is kept: what `Volume` shows."""

    number: int
    uri: str
    name: str
    state: State = "online"
    size_bytes: int | None = None
    codec: Codec = "raw"

    def volume(self) -> Volume:
        """Return it as callers have it."""
        return Volume(self.number, self.uri, self.name, self.state, self.size_bytes, self.codec)

    def moved(self, uri: str, owner: int | None) -> VolumeRow:
        """Return it under another URI, of which `owner` is the number that has it; else InputError."""
        if owner not in (None, self.number):
            raise InputError(f"volume {owner} has the URI {uri} already")
        return replace(self, uri=uri)

    def in_state(self, state: str) -> VolumeRow:
        """Return it in another state; InputError where it is none."""
        return replace(self, state=check_state(state))


def new_row(
    number: int, uri: str, name: str | None, size_bytes: int | None, codec: Codec = "raw"
) -> VolumeRow:
    """Return the row of a volume that is registered now; its name is by default the URI's last part."""
    if number > VOLUME_MAX:
        raise InputError("all 2**32 - 1 volume numbers are taken")
    label = uri.rsplit("/", 1)[-1] if name is None else name
    return VolumeRow(number, uri, label, size_bytes=size_bytes, codec=codec)


class NewVolume(NamedTuple):
    """A volume to register, checked: its URI is normal."""

    uri: str
    name: str | None = None
    size_bytes: int | None = None
    codec: Codec = "raw"


def new_volumes(
    uri: Any, *, name: str | None = None, size_bytes: Any = None, codec: str = "raw"
) -> list[NewVolume]:
    """Return what `Volumes.add` is to register; InputError where the arguments do not fit together."""
    stored = check_codec(codec)
    if isinstance(uri, (str, Path)) or not isinstance(uri, Iterable):
        return [NewVolume(normal_uri(uri), name, size_bytes, stored)]
    uris = [normal_uri(each) for each in uri]
    if name is not None:
        raise InputError("name: several volumes have the last parts of their URIs as names; leave it out")
    sizes = [size_bytes] * len(uris) if size_bytes is None else list(size_bytes)
    if len(sizes) != len(uris):
        raise InputError(f"size_bytes: expected {len(uris)}, one a URI, got {len(sizes)}")
    return [NewVolume(each, None, size, stored) for each, size in zip(uris, sizes, strict=True)]


def registered(
    wanted: Iterable[NewVolume], known: Callable[[str], VolumeRow | None], next_number: int
) -> tuple[list[VolumeRow], list[VolumeRow]]:
    """Return the rows that stand for `wanted`, in order, and the new ones among them.

    `known` returns who has a URI already. InputError where one was registered with another codec.
    """
    rows: list[VolumeRow] = []
    new: dict[str, VolumeRow] = {}
    for uri, name, size_bytes, codec in wanted:
        row = new.get(uri) or known(uri)
        if row is None:
            row = new[uri] = new_row(next_number + len(new), uri, name, size_bytes, codec)
        rows.append(known_row(row, codec))
    return rows, list(new.values())


def known_row(row: VolumeRow, codec: Codec) -> VolumeRow:
    """Return the row that a URI has already; InputError where it was registered with another codec."""
    if row.codec != codec:
        raise InputError(f"volume {row.number} has the URI {row.uri} already, with codec {row.codec!r}")
    return row


def check_state(state: str) -> State:
    """Return `state`; InputError where it is none of STATES."""
    return _one_of(STATES, "state", state)


def check_codec(codec: str) -> Codec:
    """Return `codec`; InputError where it is none of CODECS."""
    return _one_of(CODECS, "codec", codec)


def _one_of(known: tuple[T, ...], what: str, given: str) -> T:
    for each in known:
        if each == given:
            return each
    raise InputError(f"{what}: expected one of {', '.join(known)}, got {given!r}")


def unregistered(volume: int | str) -> NotFoundError:
    """Return the error that says that a volume, by number or URI, is not registered."""
    if volume == 0:
        return NotFoundError("volume 0 means unassigned; the location was put without a volume")
    if isinstance(volume, str):
        return NotFoundError(f"no volume with URI {volume}; register it with store.volumes.add")
    return NotFoundError(f"volume {volume} is not registered; register its URI with store.volumes.add")


class Volume(int):
    """A registered volume. It is its number (>= 1), so it can be written into a location's `volume` field."""

    uri: str
    name: str
    state: str
    size_bytes: int | None
    codec: str

    def __new__(
        cls, number: int, uri: str, name: str, state: str, size_bytes: int | None, codec: str = "raw"
    ) -> Volume:
        """Return volume `number`."""
        volume = super().__new__(cls, number)
        volume.uri, volume.name, volume.state, volume.size_bytes = uri, name, state, size_bytes
        volume.codec = codec
        return volume

    @property
    def number(self) -> int:
        """Return the plain number."""
        return int(self)

    def __repr__(self) -> str:
        more = "" if self.codec == "raw" else f", codec={self.codec!r}"
        return f"Volume({int(self)}, uri={self.uri!r}, name={self.name!r}, state={self.state!r}{more})"

    def __reduce__(self) -> tuple[type, tuple[int, str, str, str, int | None, str]]:
        return Volume, (int(self), self.uri, self.name, self.state, self.size_bytes, self.codec)


class Volumes(ABC):
    """A store's table of volumes."""

    @overload
    def add(
        self,
        uri: str | Path,
        *,
        name: str | None = None,
        size_bytes: int | None = None,
        codec: str = "raw",
    ) -> Volume: ...

    @overload
    def add(
        self, uri: Several, *, size_bytes: Sequence[int | None] | None = None, codec: str = "raw"
    ) -> builtins.list[Volume]: ...

    def add(
        self,
        uri: str | Path | Several,
        *,
        name: str | None = None,
        size_bytes: Any = None,
        codec: str = "raw",
    ) -> Volume | builtins.list[Volume]:
        """Register `uri` (a path or a URI) and return its volume; a known URI returns the one it has.

        Several are registered at once, and as one change where they are of a thousand or fewer: a sequence of
        them returns their volumes in order, and `size_bytes` is one for each, or None. `codec` says how each
        file in them is stored: "raw", "gzip", "deflate" or "zstd".
        """
        volumes = self.register(new_volumes(uri, name=name, size_bytes=size_bytes, codec=codec))
        return volumes[0] if isinstance(uri, (str, Path)) else volumes

    @abstractmethod
    def register(self, wanted: builtins.list[NewVolume]) -> builtins.list[Volume]:
        """Register volumes that are checked already; what `add` is made of."""

    @abstractmethod
    def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""

    @abstractmethod
    def list(self) -> list[Volume]:
        """Return all volumes, by number."""

    @abstractmethod
    def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` (number or URI) stand for another URI from now on; every entry in it follows."""

    @abstractmethod
    def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online", "offline" or "retired"; only an online one is read.

        Reading from another raises UnavailableError.
        """


def normal_uri(uri: str | Path) -> str:
    """Return `uri` as it is registered: a path becomes an absolute file:// URI."""
    if not isinstance(uri, (str, Path)):
        raise InputError(f"uri: expected a path or a URI, got {type(uri).__name__}")
    if isinstance(uri, Path) or "://" not in uri:
        text = str(uri)
        if not text or "\0" in text:
            raise InputError(f"uri: expected a path or a URI, got {text!r}")
        return Path(os.path.abspath(text)).as_uri()  # noqa: PTH100 - collapses ".." but follows no link
    try:
        scheme = urlsplit(uri).scheme
    except ValueError as error:
        raise InputError(f"uri: expected a path or a URI, got {uri!r} ({error})") from None
    if not scheme:
        raise InputError(f"uri: expected a path or a URI, got {uri!r}")
    return uri


def local_path(uri: str) -> Path:
    """Return the path of a file:// URI; UnsupportedError for any other scheme."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise UnsupportedError(f"reading {uri}: only file:// volumes can be read from here")
    return Path(unquote(parts.path))
