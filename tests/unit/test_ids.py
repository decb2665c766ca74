from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import kvmeta
from kvmeta.ids import as_ids, ids_from_hex, ids_from_ints, ids_from_keys, ids_from_uuids, ids_to_hex

KEY_VECTORS = {
    "": "99aa06d3014798d86001c324468d497f",
    "a": "a96faf705af16834e6c632b61e964e1f",
}


def test_keys_hash_to_the_published_vectors() -> None:
    # The empty and one-letter digests are those of the XXH3-128 reference implementation.
    assert ids_to_hex(ids_from_keys(["", "a"])) == [KEY_VECTORS[""], KEY_VECTORS["a"]]


def test_a_str_is_a_key_and_never_hex() -> None:
    text = "0123456789abcdef0123456789abcdef"
    assert as_ids([text]).tobytes() == xxhash.xxh3_128_digest(text.encode())
    assert as_ids([text]).tobytes() != ids_from_hex(text).tobytes()


def test_a_key_with_a_surrogate_escape_hashes_its_bytes() -> None:
    raw = b"caf\xe9.jpg"
    assert ids_from_keys([raw.decode("utf-8", "surrogateescape")]) == ids_from_keys([raw])


def test_bytes_are_raw_ids_of_exactly_sixteen() -> None:
    assert as_ids([bytes(range(16))]).tobytes() == bytes(range(16))
    for size in (0, 15, 17):
        with pytest.raises(kvmeta.InputError, match=f"got {size}"):
            as_ids([bytes(16), bytes(size)])


def test_the_error_names_the_position_of_the_wrong_id() -> None:
    with pytest.raises(kvmeta.InputError, match=r"ids\[2\]"):
        as_ids(["a", "b", 1.5])


@given(st.lists(st.integers(0, 2**128 - 1)))
def test_integers_are_big_endian_ids(values: list[int]) -> None:
    raw = b"".join(value.to_bytes(16, "big") for value in values)
    assert ids_from_ints(values).tobytes() == raw
    assert as_ids(values).tobytes() == raw


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_u8_arrays_are_zero_extended(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    assert as_ids(array).tobytes() == as_ids(values).tobytes()
    assert ids_from_ints(array).tobytes() == as_ids(values).tobytes()
    pairs = np.stack([array[::-1], array], axis=1)
    expected = [int(high) << 64 | int(low) for high, low in pairs]
    assert as_ids(pairs).tobytes() == as_ids(expected).tobytes()


def test_byte_arrays_and_void_arrays_are_the_same_ids() -> None:
    raw = np.arange(64, dtype=np.uint8).reshape(4, 16)
    assert as_ids(raw).tobytes() == raw.tobytes()
    assert as_ids(as_ids(raw)[::-1]).tobytes() == raw[::-1].tobytes()


def test_signed_integers_are_accepted_only_on_request() -> None:
    with pytest.raises(kvmeta.InputError, match="ids_from_ints"):
        as_ids(np.arange(3))
    assert (ids_from_ints(np.arange(3)) == as_ids([0, 1, 2])).all()
    with pytest.raises(kvmeta.InputError, match="negative"):
        ids_from_ints(np.array([1, -1]))


def test_s16_is_refused_with_its_reason() -> None:
    with pytest.raises(kvmeta.InputError, match="NUL"):
        as_ids(np.array([b"x" * 16], "S16"))


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_hex_round_trips(raw: list[bytes]) -> None:
    ids = as_ids(raw)
    assert ids_from_hex(ids_to_hex(ids)).tobytes() == ids.tobytes()
    assert ids_from_hex([text.upper() for text in ids_to_hex(ids)]).tobytes() == ids.tobytes()


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "g" * 32, "0x" + "0" * 30, " " * 32])
def test_bad_hex_is_refused(text: str) -> None:
    with pytest.raises(kvmeta.InputError, match=r"hex\[1\]"):
        ids_from_hex(["0" * 32, text])


def test_uuids_are_their_network_order_bytes() -> None:
    values = [uuid.uuid4() for _ in range(3)]
    assert ids_from_uuids(values).tobytes() == b"".join(value.bytes for value in values)
    assert as_ids(values).tobytes() == ids_from_uuids(values).tobytes()
    with pytest.raises(kvmeta.InputError):
        ids_from_uuids(["not one"])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()]
)
def test_arrow_arrays_hash_like_lists(kind: pa.DataType) -> None:
    keys = ["a", "", "train/é", "x" * 300] * 5
    array = pa.array(keys).cast(kind)
    assert (ids_from_keys(array) == ids_from_keys(keys)).all()
    assert (ids_from_keys(array[3:17]) == ids_from_keys(keys[3:17])).all()
    assert (ids_from_keys(pa.chunked_array([array[:7], array[7:]])) == ids_from_keys(keys)).all()
    assert len(ids_from_keys(array[:0])) == 0


def test_arrow_arrays_of_other_kinds_and_nulls_are_refused() -> None:
    with pytest.raises(kvmeta.InputError, match="int64"):
        ids_from_keys(pa.array([1, 2]))
    with pytest.raises(kvmeta.InputError, match="null"):
        ids_from_keys(pa.array(["a", None]))


def test_one_key_must_be_in_a_list() -> None:
    with pytest.raises(kvmeta.InputError):
        ids_from_keys("key")
    with pytest.raises(kvmeta.InputError, match=r"keys\[1\]"):
        ids_from_keys(["a", 5])
