"""Writers that leave syncs out, each in one place: planted bugs that power cuts must bring to light."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from kvmeta.engine import segment_writer
from kvmeta.engine.engine import Engine
from kvmeta.engine.rocks import Batch
from kvmeta_server.cluster import node_state
from tests.system.power_writer import work_until_the_power_goes


class _NoSyncs:
    """The module `os` without its syncs."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name in ("fsync", "fdatasync") else getattr(os, name)


def node_files(*args: Any) -> None:
    """Rename a node's files into place before their bytes are on disk."""
    with patch.object(node_state, "os", _NoSyncs()):
        work_until_the_power_goes(*args)


def segments(*args: Any) -> None:
    """Install segments whose bytes are not on disk."""
    with patch.object(segment_writer, "os", _NoSyncs()):
        work_until_the_power_goes(*args)


def manifest(*args: Any) -> None:
    """Remove files, and trim the log, before the manifest that says so is on disk."""
    durably = Engine._durably

    def written_only(self: Engine, batch: Batch) -> None:
        if batch.manifest:
            assert self._rocks is not None
            self._rocks.write(batch)
        else:
            durably(self, batch)

    with patch.object(Engine, "_durably", written_only):
        work_until_the_power_goes(*args)
