"""The codes in the columns of responses: one byte an ID. A number means one thing, everywhere."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar

import numpy as np


class _Code(IntEnum):
    """A code that columns are compared with."""

    # numpy asks for it before it compares, and an enumeration takes microseconds to say that it has none.
    __array_ufunc__: ClassVar[Any] = np.ndarray.__array_ufunc__


class State(_Code):
    """What a read knows of an ID. A client takes one that it does not know for FAILED."""

    ABSENT = 0
    FOUND = 1
    FAILED = 2
    """The pages that may hold it are damaged."""
    UNAVAILABLE = 3
    """Too few replicas answered."""
    FENCED = 4
    """Between nodes: asked under an older map, or not of this node. Nothing was looked at."""
    ANSWERED = 5
    """Between nodes: what is held is told, be it an entry, a tombstone or nothing."""


class Outcome(_Code):
    """What became of an ID of a write. Up to FAILED they are those of `kvmeta.Outcome`."""

    TOOK_EFFECT = 0
    ABSENT = 1
    CHANGED = 2
    EXHAUSTED = 3
    REPEATED = 4
    FAILED = 5
    EXISTS = 6
    """An insert found it held."""
    UNACKNOWLEDGED = 7
    """Too few replicas answered; it may take effect."""
    FENCED = 8
    """Between nodes: planned under an older map, or not for this node. Nothing was done."""
    STALE = 9
    """Between nodes: something newer is held."""
    REFUSED = 10
    """Between nodes: it is older than what was promised or agreed."""
