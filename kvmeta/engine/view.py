"""A view: the memtables and runs of a dataset at one moment, immutable, and the lookups over them.

Readers take the tree's current view once a batch and need no lock: what it names stays alive as long as they
hold it. A removed segment's file is unlinked at once; its mapping, and so its space, goes with the last view.
"""

from __future__ import annotations

import resource
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import lookup as kernels
from kvmeta.engine.kernels.layout import (
    MEM_FIELDS,
    RUN_FIELDS,
    RUN_FROM,
    RUN_HIGHEST,
    RUN_SEGMENT,
    RUN_SEGMENTS,
    SEG_FIELDS,
    SEG_PRIOR,
)
from kvmeta.engine.memtable import Memtable
from kvmeta.engine.run import Run
from kvmeta.engine.segment import Segment

_QUIET_BATCHES = 8
_ASK_ROWS_MIN = 16
_BLOCKS_PAGE = 8  # what the kernel counts reads in: 512 bytes


class Found(NamedTuple):
    """A lookup's columns: found u1[n], versions u8[n], locations u8[n, 3], failed u1[n]."""

    found: NDArray[np.uint8]
    versions: NDArray[np.uint64]
    locations: NDArray[np.uint64]
    failed: NDArray[np.uint8]

    def absent(self) -> NDArray[np.bool_]:
        """Return bool[n]: neither found nor failed."""
        answered: NDArray[np.bool_] = (self.found | self.failed).view(np.bool_)
        return ~answered


class ColdReads:
    """Decides, batch by batch, whether to ask for pages before the lookup (`lookup.ask`).

    Asking costs the kernel a look at every page, so it stops after some batches for which hardly anything had
    to be read, and starts again when a lookup had to wait for page faults.
    """

    def __init__(self) -> None:
        self._quiet = 0

    def before(self, view: View, mixed: NDArray[np.uint64]) -> int:
        """Ask for what `mixed` will need if pages were cold lately; return the thread's major faults."""
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        if self._quiet < _QUIET_BATCHES and len(mixed) >= _ASK_ROWS_MIN and len(view.run_table):
            blocks_before = usage.ru_inblock
            kernels.ask(mixed, view.run_table, view.segment_table)
            usage = resource.getrusage(resource.RUSAGE_THREAD)
            pages = (usage.ru_inblock - blocks_before) // _BLOCKS_PAGE
            self._quiet = 0 if pages * 64 > len(mixed) else self._quiet + 1
        return usage.ru_majflt

    def after(self, faults_before: int, n: int) -> None:
        """Note how many page faults the lookup of `n` IDs had to wait for."""
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - faults_before
        if faults * 64 > n:
            self._quiet = 0


class View:
    """Memtables, newest first, and runs; as tables for the kernels."""

    def __init__(self, memtables: tuple[Memtable, ...], runs: tuple[Run, ...]) -> None:
        self.memtables = memtables
        self.runs = tuple(sorted(runs, key=lambda run: run.highest, reverse=True))
        self.memtable_table = np.empty((len(memtables), MEM_FIELDS), np.uint64)
        for i, memtable in enumerate(memtables):
            self.memtable_table[i] = memtable.table
        self.segments: tuple[Segment, ...] = tuple(s for run in self.runs for s in run.segments)
        self.run_table = np.empty((len(runs), RUN_FIELDS), np.uint64)
        self.segment_table = np.empty((len(self.segments), SEG_FIELDS), np.uint64)
        s = 0
        for r, run in enumerate(self.runs):
            self.run_table[r, RUN_SEGMENT], self.run_table[r, RUN_SEGMENTS] = s, len(run.segments)
            self.run_table[r, RUN_FROM], self.run_table[r, RUN_HIGHEST] = run.record.from_high, run.highest
            prior = 0
            for segment in run.segments:
                self.segment_table[s] = segment.description
                self.segment_table[s, SEG_PRIOR] = prior
                prior += segment.record.rows
                s += 1

    def lookup(
        self, mixed: NDArray[np.uint64], cold: ColdReads, expired: int = 0, *, raw: bool = False
    ) -> Found:
        """Return the largest entries of `mixed` (u8[n, 2]); absent, deleted and expired ones are zeros.

        With `raw`, deleted and expired ones are told as they are held.
        """
        n = len(mixed)
        out = Found(
            np.zeros(n, np.uint8), np.zeros(n, np.uint64), np.zeros((n, 3), np.uint64), np.zeros(n, np.uint8)
        )
        faults = cold.before(self, mixed)
        kernels.lookup(
            mixed, self.memtable_table, self.run_table, self.segment_table, np.uint64(expired), raw, *out
        )
        cold.after(faults, n)
        return out

    def lowest_outside(self, inside: set[int]) -> int:
        """Return the lowest version of every source but the runs numbered `inside`."""
        runs = [run.lowest for run in self.runs if run.record.number not in inside]
        return min([memtable.lowest for memtable in self.memtables] + runs, default=(1 << 64) - 1)
