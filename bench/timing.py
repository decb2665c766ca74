"""Timing: sections without garbage collection, and progress on stderr for what takes longer than a second."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_PATIENCE_S = 1.0
_LOG_EVERY_S = 10.0  # where stderr is no terminal, lines stay


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of a timed section."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long `work()` takes, its result dropped inside."""
    with quiet():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start


class Progress:
    """What is being done, on stderr, once it has taken a second; then its time when it is done."""

    def __init__(self, label: str, total: int = 0) -> None:
        self._label, self._total = label, total
        self._start = self._told = time.monotonic()

    def __call__(self, done: int, total: int = 0) -> None:
        """Tell that `done` of the total is done, if some seconds have passed since the last time."""
        if time.monotonic() - self._told >= (_PATIENCE_S if sys.stderr.isatty() else _LOG_EVERY_S):
            total = total or self._total
            self._tell(f"{done / total:4.0%}" if total else "")
            self._told = time.monotonic()

    def counted(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield (ids, locations) batches, telling how many rows have passed."""
        done = 0
        for batch in batches:
            yield batch
            done += len(batch[0])
            self(done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if time.monotonic() - self._start >= _PATIENCE_S:
            self._tell("done" if kind is None else "failed")
            if sys.stderr.isatty():
                print(file=sys.stderr)

    def _tell(self, state: str) -> None:
        line = f"  {self._label}: {state} ({time.monotonic() - self._start:.0f} s)"
        if sys.stderr.isatty():
            print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
