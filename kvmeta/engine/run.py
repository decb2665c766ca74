"""A run: segments over disjoint hash ranges, in order, read as one sorted list of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine import filenames
from kvmeta.engine.manifest import RunRecord
from kvmeta.engine.page import Bounds, Packing
from kvmeta.engine.segment import Segment
from kvmeta.engine.segment_header import SegmentRecord
from kvmeta.engine.segment_writer import SegmentWriter

Rows = NDArray[np.uint64]


@dataclass(frozen=True)
class SegmentFiles:
    """Where segments lie and how a new one gets its number."""

    store: Path
    store_id: bytes
    take_number: Callable[[], int]
    segment_bytes_max: int
    probe: bool = False
    """Read every file before it is mapped, as those are whose damage is known (`EngineOptions.probe`)."""

    def writer(self, bounds: Bounds, *, filter_bits: int) -> SegmentWriter:
        """Return the writer of a new segment for rows within `bounds`; filter_bits 0 = no filter."""
        number = self.take_number()
        while filenames.exists(path := filenames.segment(self.store, number)):
            number = self.take_number()  # it is not ours: ours are known or removed
        return SegmentWriter(path, number, self.store_id, bounds, filter_bits=filter_bits)

    def rows_max(self, bounds: Bounds) -> int:
        """Return the rows of `bounds` that fit a segment."""
        packing = Packing.for_bounds(bounds)
        row_bytes = packing.row_bytes + 2  # page slack, directory and filter
        return max(packing.page_rows, self.segment_bytes_max // row_bytes)

    def open(self, record: SegmentRecord, known_damage: tuple[int, ...] | None) -> Segment:
        """Return the open segment of `record`; `known_damage` is None where none is known."""
        path = filenames.segment(self.store, record.number)
        probe = self.probe or known_damage is not None
        return Segment(path, record, self.store_id, known_damage or (), probe=probe)

    def write(self, rows: Rows, *, filter_bits: int) -> Iterator[SegmentWriter]:
        """Write sorted `rows` to as many segments as they need; yield each finished, not yet sealed."""
        start = 0
        while start < len(rows):
            bounds = Bounds.of(rows[start:])
            end = start + self.rows_max(bounds)
            while end < len(rows) and rows[end, 0] == rows[end - 1, 0]:
                end += 1  # segments never share a high half
            writer = self.writer(bounds, filter_bits=filter_bits)
            try:
                writer.append(rows[start:end])
                writer.finish()
            except BaseException:
                writer.abandon()
                raise
            yield writer
            start = end


@dataclass(frozen=True)
class Run:
    """An open run: its record and its segments, in the record's order."""

    record: RunRecord
    segments: tuple[Segment, ...]

    @staticmethod
    def open(record: RunRecord, files: SegmentFiles, known: dict[int, Segment] | None = None) -> Run:
        """Open the run of `record`, using segments of `known` (by number) that are open already."""
        known = known or {}
        return Run(
            record,
            tuple(
                known.get(segment.number) or files.open(segment, record.damaged.get(segment.number))
                for segment in record.segments
            ),
        )

    @property
    def highest(self) -> int:
        """Return the highest version of its entries."""
        return max((segment.record.highest_version for segment in self.segments), default=0)

    @property
    def lowest(self) -> int:
        """Return the lowest version of its entries."""
        return min((segment.record.lowest_version for segment in self.segments), default=(1 << 64) - 1)

    @property
    def quarantined(self) -> bool:
        """Return whether it is known to be damaged, by the manifest or because a file cannot be used."""
        return bool(self.record.damaged) or any(segment.damage for segment in self.segments)

    def damage(self) -> dict[int, tuple[int, ...]]:
        """Return the row pages found damaged so far, by segment number; none for a file lost as a whole."""
        return {
            segment.record.number: () if segment.damage else tuple(segment.damaged_pages())
            for segment in self.segments
            if segment.damage or segment.damaged_pages()
        }
