"""What a pack or an index run did, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """The outcome of one run.

    `files` packed or registered, in `shards` tar files, `bytes` of content; `skipped` entries that are not
    regular files (links, devices, sparse files) or could not be read; `batches` put; `seconds` it took.
    """

    files: int
    shards: int
    bytes: int
    skipped: int
    batches: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a run has come: bytes of its sources done, of how many (0 = not known), and files so far."""

    bytes_done: int
    bytes_total: int
    files: int


ProgressCallback = Callable[[Progress], None]
