"""Power cuts, over and over: what was heard to be acknowledged before one is there after it.

The writer (power_writer.py) works on a file system in a loop file that is shut down without flushing its
journal. Only what was read from it before the cut counts as acknowledged. Each cut is aimed: it comes when
the work it is to hit was heard to begin and a part of that work's usual time has passed. Work was under way
at a cut where its begin was heard before and its end never. The next writer judges what a cut left.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from kvmeta.engine.options import EngineOptions
from tests.crash.processes import fresh
from tests.crash.small import TINY
from tests.patience import HANG_S
from tests.system.disks import LoopDisk, loop_disk
from tests.system.power_writer import (
    FAVOURED,
    MOVER,
    WORK,
    Known,
    Message,
    Round,
    work_until_the_power_goes,
)

SEED = 20_240_311
CUTS_A_DISK = 25
AIM_S = 2.0
"""After so long a cut comes although the work it was aimed at did not begin."""
DYING_S = 0.2
"""So long a writer is heard after the cut."""
AIMS = (*WORK, "")  # the last: at any moment
NOT_SYNCED = replace(TINY, sync=False)


@dataclass
class Cut:
    """A power cut: what it was aimed at, what it hit, operations acknowledged before, what was wrong."""

    filesystem: str
    aim: str
    under_way: list[str] = field(default_factory=list)
    acknowledged: int = 0
    wrong: str | None = None


class CutStore:
    """A store on a disk whose power is cut, and what is known of it."""

    def __init__(self, disk: LoopDisk, options: EngineOptions, writer: Callable[..., None]) -> None:
        self._disk = disk
        self._writer = writer
        self._options = options
        self._known = Known()
        self._rounds = 0
        self._usual_s = dict.fromkeys(WORK, 0.02)
        self._begun: dict[int, tuple[str, float]] = {}
        self._judged = False  # whether the writer has judged the cuts before

    def work(self, cut: Cut | None, part: float = 0.0) -> str | None:
        """Let a writer judge the cuts before, then work until `cut`, if any; return what was found wrong."""
        self._rounds += 1
        round_ = Round(self._rounds, FAVOURED.get(cut.aim, ()) if cut else ())
        self._judged, self._begun = False, {}
        hear, tell = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        where = self._disk.path / "store"
        process = fresh(self._writer, where, self._known, round_, self._options, tell)
        tell.close()
        try:
            wrong = self._until_its_aim(hear, round_, cut, part)
            if cut is not None:
                self._disk.cut_power()
                wrong = wrong or self._while_it_dies(hear, round_, DYING_S)
                process.kill()
                wrong = wrong or self._while_it_dies(hear, round_, HANG_S)
                cut.under_way = sorted({what for what, _ in self._begun.values()})
        finally:
            process.kill()
            process.join(HANG_S)
            hear.close()
        if cut is not None:
            self._disk.unmount()
            self._disk.mount()
        return wrong

    def _until_its_aim(self, hear: Connection, round_: Round, cut: Cut | None, part: float) -> str | None:
        end = time.monotonic() + HANG_S
        while hear.poll(max(0.0, end - time.monotonic())) and time.monotonic() < end:
            try:
                message: Message = hear.recv()
            except EOFError:
                return "the writer ended before the cut"
            now = time.monotonic()
            if message.what in ("wrong", "failed"):
                return message.text
            if message.what == "right" and cut is not None:
                end = now + (AIM_S if cut.aim else part * 0.5)
            if message.what == "done" and cut is not None:
                cut.acknowledged += 1
            if message.what == "end":
                what, begun = self._begun[message.number]
                self._usual_s[what] += 0.2 * (now - begun - self._usual_s[what])
            self._hear(message, round_, sure=True)
            if cut is None and self._judged:
                break
            if cut is not None and message.text == cut.aim and message.what in ("begin", "end"):
                hit = message.what == "begin"
                end = now + (part * self._usual_s[cut.aim] if hit else AIM_S)
        return None if self._judged or cut is not None else "the check hangs"

    def _while_it_dies(self, hear: Connection, round_: Round, wait_s: float) -> str | None:
        """Hear what it has to tell of what it did meanwhile; return what it must not tell."""
        wrong = None
        end = time.monotonic() + wait_s
        while hear.poll(max(0.0, end - time.monotonic())) and time.monotonic() < end:
            try:
                message = hear.recv()
            except EOFError:
                break
            if message.what == "failed" and not message.value:
                wrong = f"an error without a type after the cut: {message.text}"
            if message.what != "begin":
                self._hear(message, round_, sure=False)
        return wrong

    def _hear(self, message: Message, round_: Round, *, sure: bool) -> None:
        known, what = self._known, message.what
        if what == "right":
            self._judged = True
            zeros = [0] * MOVER
            known.round, known.states = round_, message.value
            known.sure, known.possible = [*zeros, known.sure[MOVER]], [*zeros, known.possible[MOVER]]
        elif what == "begin":
            self._begun[message.number] = message.text, time.monotonic()
        elif what == "end":
            self._begun.pop(message.number, None)
        elif what == "done":
            if sure:
                known.sure[message.thread] = message.number
            known.possible[message.thread] = max(known.possible[message.thread], message.number)
        elif what == "kept":
            known.hints = message.number
        elif what == "replayed" and sure:
            known.replayed |= set(message.value)

    @property
    def judged(self) -> bool:
        """Return whether the last writer came to judge the cuts before."""
        return self._judged


def cut_over_and_over(
    work: Path,
    filesystem: str,
    aims: Iterable[tuple[str, float]],
    options: EngineOptions = TINY,
    writer: Callable[..., None] = work_until_the_power_goes,
) -> Iterator[Cut]:
    """Yield each cut on one disk when it is judged, up to the first after which something was wrong."""
    waiting: list[Cut] = []
    with loop_disk(work, filesystem) as disk:
        store = CutStore(disk, options, writer)
        for aim, part in [*aims, (None, 0.0)]:
            cut = None if aim is None else Cut(filesystem, aim)
            wrong = store.work(cut, part)
            if wrong and (store.judged or not waiting):
                assert cut is not None
                waiting.append(cut)  # it went wrong in its own time
            if wrong:
                waiting[-1].wrong = wrong
                yield from waiting
                return
            if store.judged:
                yield from waiting
                waiting = []
            if cut is not None:
                waiting.append(cut)


def aims_of(filesystem: str, first: int, count: int) -> list[tuple[str, float]]:
    """Return what `count` cuts from `first` on are aimed at, and after which part of its time they come."""
    parts = [
        np.random.default_rng([SEED, *filesystem.encode(), n]).uniform(0.0, 1.1)
        for n in range(first, first + count)
    ]
    return [(AIMS[n % len(AIMS)], float(part)) for n, part in enumerate(parts, first)]


def cut_without_syncs(work: Path, filesystem: str) -> Iterator[Cut]:
    """Yield a cut after many puts that are acknowledged unsynced: what it loses must be noticed."""
    yield from cut_over_and_over(work, filesystem, [("", 1.0)], NOT_SYNCED)
