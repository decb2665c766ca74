"""Column messages against the protobuf library: the same bytes mean the same, both ways."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

import kvmeta
from kvmeta.protocol.columns import ABSENT, LZ4, PLAIN
from kvmeta.protocol.messages import ColumnMessage, parse
from kvmeta.v1 import kvmeta_pb2 as pb
from tests.messages import column_of
from tests.messages import packed as pack

HEAD = pb.WriteRequest(dataset="a dataset", operation=pb.OPERATION_RELOCATE, reply_compression=LZ4)


@pytest.mark.parametrize("packing", [PLAIN, LZ4])
@pytest.mark.parametrize("n", [0, 1, 10, 1000])
def test_a_column_message_has_the_same_bytes_as_the_librarys(n: int, packing: int) -> None:
    random = np.random.default_rng(n)
    ids = np.frombuffer(random.bytes(16 * n), "V16")
    locations, versions = np.zeros(n, kvmeta.LOCATION), np.arange(n, dtype=np.uint64)
    message = ColumnMessage.of(HEAD, packing, ids=ids, locations=locations, versions=versions)
    expected = pb.WriteRequest()
    expected.CopyFrom(HEAD)
    expected.ids.CopyFrom(pack(ids, packing))
    expected.locations.CopyFrom(pack(locations, packing))
    expected.versions.CopyFrom(pack(versions, packing))
    raw = message.SerializeToString()
    assert pb.WriteRequest.FromString(raw) == expected
    back = parse(pb.WriteRequest, expected.SerializeToString())
    assert (back.dataset, back.operation, back.reply_compression) == ("a dataset", 4, LZ4)
    for name in ("ids", "locations", "versions"):
        theirs = getattr(expected, name)
        ours = getattr(back, name)
        assert ours == column_of(theirs)


def test_a_message_without_a_column_parses_it_as_absent() -> None:
    raw = ColumnMessage.of(HEAD, PLAIN, ids=np.zeros(1, "V16"), locations=None).SerializeToString()
    assert not pb.WriteRequest.FromString(raw).HasField("locations")
    assert parse(pb.WriteRequest, raw).locations == ABSENT


def test_a_message_type_without_columns_is_parsed_by_the_library() -> None:
    assert parse(pb.GetResponse, pb.GetResponse(version=7).SerializeToString()).version == 7


def test_fields_of_a_newer_peer_are_passed_over() -> None:
    newer = b"\xf8\x07\x01" + b"\xfa\x07\x02ab" + b"\xfd\x07abcd" + b"\xf9\x07abcdefgh"
    assert parse(pb.WriteRequest, HEAD.SerializeToString() + newer).dataset == "a dataset"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x1a\x05\x0a",
        b"\x1a\x03\x1a\x05x",
        b"\x1a\x02\x0a\x05",
        b"\xff" * 11,
        b"\x0b",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x1a\x02\x0a\x00\x1a\x02\x0a\x00",
    ],
)
def test_malformed_messages_raise_input_errors(raw: bytes) -> None:
    with pytest.raises(kvmeta.InputError, match="not a WriteRequest"):
        parse(pb.WriteRequest, raw)


@given(st.binary(max_size=64))
def test_our_parser_agrees_with_the_librarys(raw: bytes) -> None:
    with suppress(kvmeta.InputError):
        ours = parse(pb.WriteRequest, raw)
        theirs = pb.WriteRequest.FromString(raw)
        assert ours.dataset == theirs.dataset
        assert ours.ids == column_of(theirs.ids)


def test_fields_of_a_column_that_are_not_known_are_passed_over() -> None:
    for inner in (b"\x1a\x01x", b"\x1a\x01x\x0a\x02ab", b"\x0a\x02ab\x20\x05", b"\x0a\x01z\x0a\x02ab"):
        raw = b"\x1a" + bytes([len(inner)]) + inner
        assert parse(pb.WriteRequest, raw).ids == column_of(pb.WriteRequest.FromString(raw).ids)


@given(st.binary(max_size=8), st.integers(0, 60), st.integers(0, 255))
def test_a_changed_byte_is_accepted_or_refused_as_by_the_library(data: bytes, place: int, value: int) -> None:
    raw = bytearray(ColumnMessage.of(HEAD, PLAIN, ids=np.frombuffer(data, np.uint8)).SerializeToString())
    raw[place % len(raw)] = value
    try:
        ours = parse(pb.WriteRequest, bytes(raw))
    except kvmeta.InputError:
        return
    try:
        theirs = pb.WriteRequest.FromString(bytes(raw))
    except DecodeError:
        pytest.fail("the library refuses what we parse")
    assert ours.ids == column_of(theirs.ids)
