"""Packing: how a segment's rows become fixed-width bytes, 4 KiB pages of them.

Each of a row's 8 columns is stored as `(value - base) >> shift` in `width` bytes, little-endian, back to back
(frame of reference, per segment). So a row's address follows from its number, and a column that never changes
costs nothing. The high half of the mixed ID keeps shift 0 and the low half all 8 bytes, for lookups compare
them as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels import rows as row_kernels
from kvmeta.engine.kernels.layout import COLUMNS, HIGH, LOW, PAGE_BYTES, PAYLOAD_BYTES

__all__ = ["PAGE_BYTES", "PAYLOAD_BYTES", "Bounds", "Packing"]

_CONSTANT = 64  # the shift of a column whose value never changes


@dataclass(frozen=True)
class Bounds:
    """What is known of each column: smallest, largest (u8[8]) and how many low bits are equal (64 = all)."""

    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    shift: NDArray[np.int64]

    @staticmethod
    def of(rows: NDArray[np.uint64]) -> Bounds:
        """Return the exact bounds of `rows` (u8[n, 6], n >= 1)."""
        raw = np.empty((COLUMNS, 4), np.uint64)
        row_kernels.bounds(rows, raw)
        shift = np.array([_trailing_zeros(int(differ)) for differ in raw[:, 3]], np.int64)
        return Bounds(raw[:, 0].copy(), raw[:, 1].copy(), shift)

    @staticmethod
    def union(many: Iterable[Bounds]) -> Bounds:
        """Return bounds that hold for the rows of all of `many` (at least one)."""
        bounds = list(many)
        low = np.min([each.low for each in bounds], axis=0)
        high = np.max([each.high for each in bounds], axis=0)
        shift = np.min([each.shift for each in bounds], axis=0)
        for each in bounds:
            for c in range(COLUMNS):
                shift[c] = min(shift[c], _trailing_zeros(int(each.low[c]) ^ int(low[c])))
        return Bounds(low, high, shift)

    def within(self, first_high: int, last_high: int) -> Bounds:
        """Return these bounds for rows whose high half lies in [first_high, last_high]."""
        low, high = self.low.copy(), self.high.copy()
        low[HIGH] = max(int(low[HIGH]), first_high)
        high[HIGH] = min(int(high[HIGH]), last_high)
        return Bounds(low, high, self.shift)


@dataclass(frozen=True)
class Packing:
    """A segment's column layout: base (u8[8]), shift and width in bytes (i8[8])."""

    base: NDArray[np.uint64]
    shift: NDArray[np.int64]
    width: NDArray[np.int64]

    @staticmethod
    def for_bounds(bounds: Bounds) -> Packing:
        """Return the narrowest packing that holds every value within `bounds`."""
        base, shift = bounds.low.copy(), bounds.shift.copy()
        base[LOW], shift[LOW], shift[HIGH] = 0, 0, 0
        shift[shift == _CONSTANT] = 0
        spread = [
            int(high) - int(low) >> int(s) for high, low, s in zip(bounds.high, base, shift, strict=True)
        ]
        width = np.array([(value.bit_length() + 7) // 8 for value in spread], np.int64)
        width[LOW] = 8
        return Packing(base, shift, width)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one packed row."""
        return int(self.width.sum())

    @property
    def page_rows(self) -> int:
        """Return the rows of one page."""
        return PAYLOAD_BYTES // self.row_bytes

    def table(self) -> NDArray[np.uint64]:
        """Return the layout as the kernels read it: u8[8, 4] of base, shift, byte offset, mask."""
        at = np.concatenate([[0], np.cumsum(self.width)[:-1]])
        mask = [(1 << 8 * int(w)) - 1 for w in self.width]
        columns = [self.base, self.shift.astype(np.uint64), at.astype(np.uint64), np.array(mask, np.uint64)]
        return np.stack(columns, axis=1)


def _trailing_zeros(value: int) -> int:
    return (value & -value).bit_length() - 1 if value else _CONSTANT
