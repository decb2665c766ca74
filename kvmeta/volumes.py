"""Volumes: what a location's number stands for. Moving one changes one row and no entry."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kvmeta.errors import InputError, UnsupportedError

VOLUME_MAX = (1 << 32) - 1
STATES = ("online", "offline")


class Volume(int):
    """A registered volume. It is its number (>= 1), so it can be written into a location's `volume` field."""

    uri: str
    name: str
    state: str
    size_bytes: int | None

    def __new__(cls, number: int, uri: str, name: str, state: str, size_bytes: int | None) -> Volume:
        """Return volume `number`."""
        volume = super().__new__(cls, number)
        volume.uri, volume.name, volume.state, volume.size_bytes = uri, name, state, size_bytes
        return volume

    @property
    def number(self) -> int:
        """Return the plain number."""
        return int(self)

    def __repr__(self) -> str:
        return f"Volume({int(self)}, uri={self.uri!r}, name={self.name!r}, state={self.state!r})"

    def __reduce__(self) -> tuple[type, tuple[int, str, str, str, int | None]]:
        return Volume, (int(self), self.uri, self.name, self.state, self.size_bytes)


class Volumes(ABC):
    """A store's table of volumes."""

    @abstractmethod
    def add(self, uri: str | Path, *, name: str | None = None, size_bytes: int | None = None) -> Volume:
        """Register `uri` (a path or a URI) and return its volume; a known URI returns the one it has."""

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
        """Set a volume "online" or "offline"; reading from an offline one raises UnavailableError."""


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
