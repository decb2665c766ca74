"""Columns as bytes and back, and bytes that are no columns."""

from __future__ import annotations

from contextlib import suppress

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvmeta
from kvmeta.ids import ID
from kvmeta.location import LOCATION
from kvmeta.protocol.columns import ABSENT, LZ4, PLAIN, VERSION, fill, unpack, unpack_up_to
from kvmeta.v1 import kvmeta_pb2 as pb
from tests.messages import column_of
from tests.messages import packed as pack


@pytest.mark.parametrize("packing", [PLAIN, LZ4])
@pytest.mark.parametrize("dtype", [ID, LOCATION, VERSION])
@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_a_column_survives_packing_and_unpacking(dtype: np.dtype, n: int, packing: int) -> None:
    for raw in (bytes(n * dtype.itemsize), np.random.default_rng(n).bytes(n * dtype.itemsize)):
        column = np.frombuffer(raw, dtype)
        packed = column_of(pb.Packed.FromString(pack(column, packing).SerializeToString()))
        assert unpack(packed, dtype, n, "column").tobytes() == raw
        around = np.zeros(n + 2, dtype)
        fill(packed, around, slice(1, n + 1), "column")
        assert around.tobytes() == bytes(dtype.itemsize) + raw + bytes(dtype.itemsize)


def test_lz4_is_used_only_if_it_is_shorter() -> None:
    assert pack(np.zeros(1000, LOCATION), LZ4).WhichOneof("form") == "lz4"
    assert pack(np.frombuffer(np.random.default_rng(1).bytes(16_000), ID), LZ4).WhichOneof("form") == "plain"
    assert pack(np.zeros(0, ID), LZ4).WhichOneof("form") == "plain"


@pytest.mark.parametrize("got", [2, 4])
@pytest.mark.parametrize("packing", [PLAIN, LZ4])
def test_a_column_that_does_not_fit_its_room_is_refused(got: int, packing: int) -> None:
    room = np.zeros(3, LOCATION)
    with pytest.raises(kvmeta.InputError, match=r"locations: (expected 3 rows .* got 2 rows|96 bytes)"):
        fill(column_of(pack(np.ones(got, LOCATION), packing)), room, slice(0, 3), "locations")
    assert not room["volume"].any()


def test_an_absent_column_has_no_rows() -> None:
    assert len(unpack(ABSENT, ID, 0, "ids")) == 0
    with pytest.raises(kvmeta.InputError, match="ids: expected 3 rows"):
        unpack(ABSENT, ID, 3, "ids")


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        (pb.Packed(plain=bytes(15)), "no multiple"),
        (pb.Packed(plain=bytes(16 * 11)), "at most 160"),
        (pb.Packed(lz4=b""), "corrupt"),
        (pb.Packed(lz4=b"\x10\0"), "corrupt"),
        (pb.Packed(lz4=(16).to_bytes(4, "little") + b"\xff\xff\xff"), "corrupt"),
        (pb.Packed(lz4=(1 << 31).to_bytes(4, "little") + b"\0"), "at most 160"),
        (
            pb.Packed(lz4=(32).to_bytes(4, "little") + lz4.block.compress(bytes(16), store_size=False)),
            "holds|corrupt",
        ),
    ],
)
def test_a_malformed_column_is_refused_by_name(packed: pb.Packed, told: str) -> None:
    with pytest.raises(kvmeta.InputError, match=f"ids: .*({told})"):
        unpack_up_to(column_of(packed), ID, 10, "ids")


def test_a_compression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = pb.Packed(lz4=lz4.block.compress(bytes(64 << 20), store_size=True))
    assert len(bomb.lz4) < 300_000
    with pytest.raises(kvmeta.InputError, match="at most 1048576 are taken"):
        unpack_up_to(column_of(bomb), ID, 65_536, "ids")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_column_or_an_input_error(data: bytes) -> None:
    for packed in (pb.Packed(plain=data), pb.Packed(lz4=data)):
        try:
            column = unpack_up_to(column_of(packed), ID, 10, "ids")
        except kvmeta.InputError:
            continue
        assert len(column) <= 10


@given(st.integers(0, 300), st.integers(0, 255), st.integers(0, 10_000))
def test_a_flipped_byte_in_a_block_is_a_column_or_an_input_error(n: int, value: int, place: int) -> None:
    block = bytearray(lz4.block.compress(bytes(16 * n), store_size=True))
    block[place % len(block)] = value
    with suppress(kvmeta.InputError):
        assert len(unpack_up_to(column_of(pb.Packed(lz4=bytes(block))), ID, 300, "ids")) <= 300
