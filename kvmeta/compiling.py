"""Who is told that kernels are about to be compiled: nobody, unless a program asks to be.

A kernel is compiled where numba's cache does not have it: once after an installation, and after an update.
That takes a while in which nothing else would be seen. A library stays silent, kvmeta's programs tell.
"""

from __future__ import annotations

from collections.abc import Callable

WORDS = "compiling the kernels once; about half a minute"

_tell: list[Callable[[str], object]] = []


def tell_by(tell: Callable[[str], object] | None) -> None:
    """Let `tell` have the words before the first kernel of this process is compiled; None: nobody."""
    _tell[:] = [] if tell is None else [tell]


def begins() -> None:
    """Tell, if somebody asked to be told and has not been."""
    if _tell:
        _tell.pop()(WORDS)
