"""A progress bar on stderr for work that takes more than a moment; gone when the work is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmeta.sources.report import Progress

_PATIENCE_S = 1.0  # quicker work needs no bar, and rich takes a tenth of a second to import

Update = Callable[[int, int], None]
"""Called with (done, total); a total of 0 is not known."""


@contextmanager
def progress_bar(label: str, wanted: bool | None) -> Iterator[Update | None]:
    """Give a function to call with (done, total) in any one unit, or None where no bar is wanted.

    `wanted` None means: only where stderr is a terminal. Without rich there is no bar.
    """
    with _bar(label, wanted) as bar:
        yield None if bar is None else bar.update


@contextmanager
def file_progress_bar(label: str, wanted: bool | None) -> Iterator[Callable[[Progress], None] | None]:
    """Give a function to call with each `Progress` of a pack or an index run, or None."""
    with _bar(label, wanted) as bar:
        if bar is None:
            yield None
        else:
            yield lambda step: bar.update(step.bytes_done, step.bytes_total, f"{step.files:,} files")


@contextmanager
def _bar(label: str, wanted: bool | None) -> Iterator[_Bar | None]:
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield None
        return
    bar = _Bar(label, patience_s=0.0 if wanted else _PATIENCE_S)
    try:
        yield bar
    finally:
        bar.close()


class _Bar:
    """A bar that appears once the work has outlasted the patience."""

    def __init__(self, label: str, patience_s: float) -> None:
        self.label = label
        self.show_at = time.monotonic() + patience_s
        self.bar: Any = None
        self.task: Any = None

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.bar is None:
            if time.monotonic() < self.show_at:
                return
            try:
                self._show()
            except ImportError:
                self.show_at = float("inf")
                return
        self.bar.update(self.task, completed=done, total=total or None, note=note)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        force = True if os.environ.get("FORCE_COLOR") else None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, force_terminal=force),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=None, note="")
