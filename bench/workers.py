"""Clients in processes of their own: an object that lives there, its methods called from here.

    Worker(Asker, target) ── starts ──> python -m bench.workers: Asker(target)
    begin("round", 4096)  ── pipe ────> .round(4096)
    result()              <── pipe ───  what it returned

Between `begin` and `result` several workers may be at work.

A benchmark's own process holds engines and results; what is timed shall be a client and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.timing import quiet

_ROOT = Path(__file__).resolve().parents[1]
_STOP_S = 30


class Worker:
    """A process that holds `kind(*arguments)`; `kind` is a class of an importable module.

    `before`: the words of a command that runs the process somewhere else, such as `ip netns exec NAME`.
    """

    def __init__(self, kind: type, *arguments: Any, before: Sequence[str] = ()) -> None:
        self._pipe, theirs = Pipe()
        handle = theirs.fileno()
        command = [*before, sys.executable, "-m", "bench.workers", str(handle)]
        self._process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, pass_fds=[handle])
        theirs.close()
        try:
            self._pipe.send((kind, arguments))
            self.result()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what the method returns."""
        self.begin(method, *arguments)
        return self.result()

    def begin(self, method: str, *arguments: Any) -> None:
        """Let the method run; `result` waits for it."""
        self._pipe.send((method, arguments))

    def result(self) -> Any:
        """Return what the method begun last returns; RuntimeError with its traceback where it failed."""
        try:
            failed, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError("a client process ended before its answer") from None
        if failed:
            raise RuntimeError(f"in a client process:\n{value}")
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _run(pipe: Connection) -> None:
    """Make the object, then call its methods until the pipe closes."""
    try:
        kind, arguments = pipe.recv()
        subject = kind(*arguments)
    except Exception:  # noqa: BLE001 - told to the other side, like those below
        pipe.send((True, traceback.format_exc()))
        return
    pipe.send((False, None))
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, getattr(subject, method)(*given))
        except Exception:  # noqa: BLE001
            answer = (True, traceback.format_exc())
        pipe.send(answer)


def together_s(
    call: Callable[[Any], Any], items: Iterable[Any], threads: int, before: Iterable[Any] | None = None
) -> float:
    """Return how long `threads` threads take to call `call` with each of `items`, each taking the next one.

    Calls with `before` (None: a quarter of the items) come first, untimed: threads run, memory is there.
    """
    items = list(items)
    before = items[: max(threads, len(items) // 4)] if before is None else list(before)
    with ThreadPoolExecutor(threads) as pool:
        _drain(pool, threads, call, before)
        with quiet():
            start = time.perf_counter()
            _drain(pool, threads, call, items)
            return time.perf_counter() - start


def _drain(pool: ThreadPoolExecutor, threads: int, call: Callable[[Any], Any], items: list[Any]) -> None:
    waiting = deque(items)

    def work(_: int) -> None:
        while True:
            try:
                item = waiting.popleft()
            except IndexError:
                return
            call(item)

    for _ in pool.map(work, range(threads)):
        pass


if __name__ == "__main__":
    _run(Connection(int(sys.argv[1])))
