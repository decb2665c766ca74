from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvmeta.engine.kernels.hashing import page_checksum, xxh64


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_xxh64_is_the_published_function(data: bytes, seed: int) -> None:
    buffer = np.frombuffer(data + bytes(8), np.uint8).copy()
    expected = xxhash.xxh64_intdigest(data, seed)
    assert int(xxh64(np.uint64(buffer.ctypes.data), len(data), np.uint64(seed))) == expected


@pytest.mark.parametrize("flipped", [0, 1, 31, 2000, 4087])
def test_a_page_checksum_covers_bytes_file_and_place(flipped: int) -> None:
    page = np.random.default_rng(0).integers(0, 256, 4096).astype(np.uint8)
    at = np.uint64(page.ctypes.data)
    first = page_checksum(at, np.uint64(5), np.uint64(1))
    assert page_checksum(at, np.uint64(5), np.uint64(2)) != first
    assert page_checksum(at, np.uint64(6), np.uint64(1)) != first
    page[flipped] ^= 1
    assert page_checksum(at, np.uint64(5), np.uint64(1)) != first
