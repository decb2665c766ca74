"""How long a test waits: until what it waits for is there. No test knows how fast a machine is.

HANG_S is for what never comes: a test that fails because of it found a hang, not a slow or a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

HANG_S = 150.0
"""Hundreds of times what anything that a test waits for takes on a machine of its own."""
LOOK_S = 0.005

T = TypeVar("T")


def until(true: Callable[[], T], what: str, *, within_s: float = HANG_S, look_s: float = LOOK_S) -> T:
    """Return what `true()` returns as soon as that is true; fail with `what` where it never is."""
    end = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < end, what
        time.sleep(look_s)
    return found
