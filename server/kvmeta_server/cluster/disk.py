"""A node's few small files, below one directory: see seams.Disk."""

from __future__ import annotations

import os
from pathlib import Path

from kvmeta.errors import os_errors


class FileDisk:
    """Files below `root`, which is made."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with os_errors("making", root):
            root.mkdir(parents=True, exist_ok=True)

    def where(self, name: str) -> str:
        """Return a file's path."""
        return str(self._root / name)

    def names(self, below: str) -> list[str]:
        """Return the names of the files in a directory, sorted."""
        path = self._root / below
        with os_errors("listing", path):
            return sorted(file.name for file in path.iterdir()) if path.exists() else []

    def size(self, name: str) -> int:
        """Return a file's bytes; 0 where there is no such file."""
        path = self._root / name
        with os_errors("reading", path):
            return path.stat().st_size if path.exists() else 0

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes | None:
        """Return up to `size` bytes (all: -1) from byte `start` on; None where there is no such file."""
        path = self._root / name
        with os_errors("reading", path):
            if not path.exists():
                return None
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(size)

    def replace(self, name: str, raw: bytes) -> None:
        """Replace a file durably: written aside, synced, renamed, its directory synced."""
        path = self._made(name)
        fresh = path.with_name(path.name + ".new")
        with os_errors("writing", path):
            with open(fresh, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def append(self, name: str, raw: bytes) -> None:
        """Append `raw`; it is not synced."""
        path = self._made(name)
        with os_errors("writing", path), open(path, "ab") as file:
            file.write(raw)

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to `size` bytes."""
        path = self._root / name
        with os_errors("writing", path):
            os.truncate(path, size)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        path = self._root / name
        with os_errors("removing", path):
            path.unlink(missing_ok=True)

    def _made(self, name: str) -> Path:
        path = self._root / name
        with os_errors("making", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path
