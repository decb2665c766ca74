"""A progress bar on stderr for work that takes more than a moment; gone when the work is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmeta.index.report import Progress

_PATIENCE_S = 1.0  # quicker work needs no bar, and rich takes a tenth of a second to import


@contextmanager
def progress_bar(label: str, wanted: bool | None) -> Iterator[Callable[[Progress], None] | None]:
    """Give a function to call with each `Progress`, or None where no bar is wanted.

    `wanted` None means: only where stderr is a terminal. Without rich there is no bar.
    """
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield None
        return
    bar = _Bar(label, patience_s=0.0 if wanted else _PATIENCE_S)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    def __init__(self, label: str, patience_s: float) -> None:
        self.label = label
        self.show_at = time.monotonic() + patience_s
        self.bar: Any = None
        self.task: Any = None

    def update(self, progress: Progress) -> None:
        if self.bar is None:
            if time.monotonic() < self.show_at:
                return
            try:
                self._show()
            except ImportError:
                self.show_at = float("inf")
                return
        total = progress.bytes_total or None
        self.bar.update(
            self.task, completed=progress.bytes_done, total=total, files=f"{progress.files:,} files"
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        force = True if os.environ.get("FORCE_COLOR") else None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[files]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, force_terminal=force),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=None, files="")
