from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kvmeta.engine.kernels import rows as row_kernels
from kvmeta.engine.kernels.layout import (
    PAGE_BYTES,
    SEG_BASE,
    SEG_COLUMNS,
    SEG_FIELDS,
    SEG_PAGE_ROWS,
    SEG_ROW_BYTES,
    SEG_SEED,
    SEG_STATES,
)
from kvmeta.engine.page import Bounds, Packing
from tests.unit.engine.rows import by_id, random_rows

words = st.one_of(
    st.integers(0, 2**64 - 1), st.integers(0, 300), st.sampled_from([0, 2**64 - 1, 2**63, 512, 1 << 40])
)
any_rows = st.integers(1, 300).flatmap(lambda n: arrays(np.uint64, (n, 6), elements=words, fill=words))


def pack(rows: np.ndarray, packing: Packing) -> tuple[np.ndarray, int]:
    page_rows = packing.page_rows
    pages = -(-len(rows) // page_rows)
    out = np.zeros((pages + 1) * PAGE_BYTES, np.uint8)
    row_kernels.pack(rows, packing.table(), packing.row_bytes, page_rows, 1, np.uint64(9), out[PAGE_BYTES:])
    return out, pages


def unpack(out: np.ndarray, pages: int, packing: Packing, n: int) -> tuple[np.ndarray, int]:
    segment, states = np.zeros(SEG_FIELDS, np.uint64), np.zeros(pages, np.uint8)
    segment[SEG_BASE], segment[SEG_SEED], segment[SEG_STATES] = out.ctypes.data, 9, states.ctypes.data
    segment[SEG_ROW_BYTES], segment[SEG_PAGE_ROWS] = packing.row_bytes, packing.page_rows
    segment[SEG_COLUMNS:] = packing.table().reshape(-1)
    rows = np.empty((n, 6), np.uint64)
    return rows, int(row_kernels.unpack(np.uint64(segment.ctypes.data), 0, n, False, rows))


@settings(deadline=None)
@given(any_rows)
def test_any_rows_survive_packing(rows: np.ndarray) -> None:
    rows = by_id(rows)
    packing = Packing.for_bounds(Bounds.of(rows))
    out, pages = pack(rows, packing)
    back, got = unpack(out, pages, packing, len(rows))
    assert got == len(rows)
    assert (back == rows).all()


@pytest.mark.slow
@settings(deadline=None)
@given(any_rows, any_rows)
def test_a_packing_for_joined_bounds_fits_the_rows_of_both(a: np.ndarray, b: np.ndarray) -> None:
    packing = Packing.for_bounds(Bounds.union([Bounds.of(a), Bounds.of(b)]))
    for rows in (by_id(a), by_id(b)):
        out, pages = pack(rows, packing)
        assert (unpack(out, pages, packing, len(rows))[0] == rows).all()


def test_constant_columns_take_no_space() -> None:
    rows = random_rows(1000)
    rows[:, 3:] = 7
    packing = Packing.for_bounds(Bounds.of(by_id(rows)))
    assert packing.row_bytes == 16
    assert packing.width.tolist() == [8, 8, 0, 0, 0, 0, 0, 0]


def test_aligned_offsets_and_a_common_id_prefix_take_less_space() -> None:
    rows = random_rows(1000)
    rows[:, 0] = rows[:, 0] >> np.uint64(16) | np.uint64(0xABCD << 48)
    rows[:, 4] = np.arange(1000) * 512 + (1 << 40)
    packing = Packing.for_bounds(Bounds.of(by_id(rows)))
    assert packing.width[0] == 6
    assert (packing.width[5], packing.shift[5]) == (2, 9)


def test_a_flipped_bit_is_noticed_in_its_page_alone() -> None:
    rows = by_id(random_rows(1000))
    packing = Packing.for_bounds(Bounds.of(rows))
    out, pages = pack(rows, packing)
    out[2 * PAGE_BYTES + 77] ^= 4
    _, damaged = unpack(out, pages, packing, len(rows))
    assert damaged == -2
    first, got = unpack(out, pages, packing, packing.page_rows)
    assert got == packing.page_rows
    assert (first == rows[: packing.page_rows]).all()
