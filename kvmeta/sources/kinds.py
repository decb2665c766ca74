"""The kinds of sources, one row each; a file's kind is told by the ending of its name."""

from __future__ import annotations

from pathlib import Path

from kvmeta.sources import tar
from kvmeta.sources.source import Kind

KINDS = (Kind("tar", (".tar",), tar.scan),)
"""The first is taken for a file of another ending that is named by itself."""


def kind_of(path: Path) -> Kind:
    """Return the kind of source that a file is."""
    return next((kind for kind in KINDS if path.name.endswith(kind.endings)), KINDS[0])


def is_source(path: Path) -> bool:
    """Return whether a file found in a directory is a source, by its name."""
    return any(path.name.endswith(kind.endings) for kind in KINDS)
