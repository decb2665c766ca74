"""The CRC-32C of the kernels against a library's, both ways of computing it."""

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmeta.sources.crc_kernels import crc32c_by_tables, crc32c_update

BOTH_WAYS = pytest.mark.parametrize(
    "update", [crc32c_update, crc32c_by_tables], ids=["instruction", "tables"]
)


def crc32c(update, content: bytes, cut: int) -> int:
    chunk = np.zeros(-(-len(content) // 8) * 8 + 8, np.uint8)
    chunk[: len(content)] = np.frombuffer(content, np.uint8)
    words = chunk.view(np.uint64)
    register = update(np.uint64(0xFFFFFFFF), chunk, words, 0, cut)
    return int(update(np.uint64(register), chunk, words, cut, len(content) - cut)) ^ 0xFFFFFFFF


@BOTH_WAYS
def test_the_published_check_value_is_met(update):
    assert crc32c(update, b"123456789", 0) == 0xE3069283


@BOTH_WAYS
@given(content=st.binary(max_size=300), share=st.floats(0, 1))
def test_crc32c_matches_the_library_even_in_two_pieces(update, content, share):
    cut = int(len(content) * share) // 8 * 8
    assert crc32c(update, content, cut) == google_crc32c.value(content)
