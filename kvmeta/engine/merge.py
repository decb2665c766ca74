"""One merge of runs into one: a walk along the hash order that can stop and resume at any segment.

    0 ........ frontier ............ position .......... 2**64
    |  output   |  segment being      |  inputs           |
    |  segments |  written            |                   |

Up to the frontier the output run answers, beyond it the inputs; the manifest says both in one change each
time a segment is done. Input segments that lie below the frontier are dropped with that change, so a merge
needs the space of one segment besides the inputs it stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvmeta.engine.kernels.layout import ROW_WORDS
from kvmeta.engine.manifest import MergeRecord, RunRecord, TreeRecord
from kvmeta.engine.page import Bounds
from kvmeta.engine.run import Run, SegmentFiles
from kvmeta.engine.segment_header import SegmentRecord
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.engine.view import View
from kvmeta.engine.window import HASH_MAX, cut, merged_rows, within


@dataclass(frozen=True)
class Advance:
    """What a step completed: a new segment (None where every row was dropped) and the frontier behind it."""

    segment: SegmentRecord | None
    frontier: int
    done: bool


class Merge:
    """The merge of `record` over its open input runs."""

    def __init__(
        self,
        record: MergeRecord,
        inputs: tuple[Run, ...],
        files: SegmentFiles,
        *,
        filter_bits: int,
        step_rows: int,
    ) -> None:
        self.record = record
        self.inputs = inputs
        self._view = View((), inputs)
        self._files = files
        self._filter_bits = filter_bits
        self._step_rows = step_rows
        self._position = record.frontier
        self._drop = np.array(record.drop, np.uint64).reshape(-1, 2)
        self._end = HASH_MAX
        self._bounds: Bounds | None = None
        self._writer: SegmentWriter | None = None

    @property
    def progress(self) -> float:
        """Return the share of the hash order passed so far, 0 to 1."""
        return self._position / (HASH_MAX + 1)

    def step(self, purge: int, expired: int) -> Advance | None:
        """Merge one window; return an Advance where it completed a segment.

        `purge`: tombstones below this version hide nothing outside the merge and are dropped.
        """
        if self._bounds is None:
            self._start_segment()
        last = cut(self._view, self._position, self._end, self._step_rows)
        self._will_need(min(HASH_MAX, last + (last - self._position)))  # this window and the next
        rows = merged_rows(
            self._view, self._position, last, purge=purge, expired=expired, lenient=self.record.discard
        )
        if len(self._drop):
            rows = rows[~within(rows, self._drop)]
        if len(rows):
            assert self._bounds is not None
            if self._writer is None:
                self._writer = self._files.writer(self._bounds, filter_bits=self._filter_bits)
            self._writer.append(rows)
        self._position = last + 1
        return self._finish_segment() if last == self._end else None

    def narrow(self, inputs: tuple[Run, ...]) -> None:
        """Go on with what is left of the inputs: dropped segments keep their space while they are open."""
        self.inputs = inputs
        self._view = View((), inputs)

    def abandon(self) -> None:
        """Drop the unfinished segment; the frontier stays where the manifest has it."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _start_segment(self) -> None:
        ahead = [
            segment.bounds
            for run in self.inputs
            for segment in run.segments
            if segment.record.last >> 64 >= self._position and not segment.damage
        ]
        bounds = Bounds.union(ahead) if ahead else Bounds.of(np.zeros((1, ROW_WORDS), np.uint64))
        bounds = bounds.within(self._position, HASH_MAX)
        self._end = cut(self._view, self._position, HASH_MAX, self._files.rows_max(bounds))
        self._bounds = bounds.within(self._position, self._end)

    def _finish_segment(self) -> Advance:
        segment = None
        if self._writer is not None:
            self._writer.finish()
            segment = self._writer.seal()
        self._writer = self._bounds = None
        return Advance(segment, self._position, done=self._end == HASH_MAX)

    def _will_need(self, last_high: int) -> None:
        """Start reading the input pages from the position to `last_high` (a guess by even spread)."""
        for segment in self._view.segments:
            first, end, rows = segment.record.first >> 64, segment.record.last >> 64, segment.record.rows
            if first <= last_high and end >= self._position:
                span = max(1, end - first)
                low = max(0, self._position - first) * rows // span
                high = min(span, last_high - first) * rows // span
                segment.will_need(max(0, low - 256), min(rows, high + 256))


def advanced(tree: TreeRecord, merge: MergeRecord, advance: Advance) -> TreeRecord:
    """Return a tree's record after `advance` of one of its merges."""
    out: list[RunRecord] = []
    output = next((run for run in tree.runs if run.number == merge.output), None)
    output = output or RunRecord(merge.output, merge.bottom, 0, ())
    if advance.segment is not None:
        output = replace(output, segments=(*output.segments, advance.segment))
    for run in tree.runs:
        if run.number == merge.output:
            continue
        if run.number in merge.inputs:
            if advance.done:
                continue
            left = tuple(s for s in run.segments if s.last >> 64 >= advance.frontier)
            run = replace(run, from_high=max(run.from_high, advance.frontier), segments=left)
        out.append(run)
    runs = tuple(run for run in (*out, output) if run.segments)
    others = tuple(each for each in tree.merges if each.output != merge.output)
    if advance.done:
        return replace(tree, runs=runs, merges=others)
    return replace(tree, runs=runs, merges=(*others, replace(merge, frontier=advance.frontier)))
