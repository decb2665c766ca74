"""Messages that are mostly columns, read and written without copying those about.

The protobuf library copies a bytes field when it is set, when the message is serialised, when it is parsed
and when the field is read. So a `ColumnMessage` lets the library do the head of a message, which is small,
and keeps the columns, its fields of type `Packed`, as views:

    serialise   the head's bytes, then each column: tag, size, tag, size, the column's own bytes
    parse       columns become views of the message's bytes; all other fields are the head

This is plain protobuf encoding: serialised messages that are joined are one message. A test compares both
ways with the library's own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from kvmeta.errors import InputError
from kvmeta.protocol.columns import ABSENT, Column, pack
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer

_PLAIN, _LZ4 = 1, 2  # the fields of Packed
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_VARINT_BYTES_MAX = 10
_NUMBER_MAX = (1 << 29) - 1
_PLAIN_KEY, _LZ4_KEY = _PLAIN << 3 | _BYTES, _LZ4 << 3 | _BYTES

_Field = tuple[int, int, int, int]
"""A field: where it begins, its key (number << 3 | wire type), where its value begins and ends."""


def _columns_of(kind: Descriptor) -> dict[int, str]:
    return {each.number: each.name for each in kind.fields if each.message_type is pb.Packed.DESCRIPTOR}


_COLUMNS = {
    getattr(module, name): _columns_of(kind)
    for module in (pb, peer)
    for name, kind in module.DESCRIPTOR.message_types_by_name.items()
}
"""Of each message of the protocol: the numbers and names of its columns."""
_NUMBERS = {kind: {name: number for number, name in names.items()} for kind, names in _COLUMNS.items()}


class MessageBytes:
    """A message that is bytes already."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def SerializeToString(self) -> bytes:  # noqa: N802 - as messages have it
        """Return them."""
        return self._raw


class ColumnMessage:
    """A message: `head` and its columns. Fields of both are attributes, like the library's."""

    __slots__ = ("_columns", "_head")

    def __init__(self, head: Message, columns: dict[str, Column]) -> None:
        self._head = head
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        column = self._columns.get(name)
        if column is not None:
            return column
        return ABSENT if name in _NUMBERS[type(self._head)] else getattr(self._head, name)

    @staticmethod
    def of(head: Message, packing: pb.Compression, **columns: NDArray[Any] | None) -> ColumnMessage:
        """Return the message of `head` and C-contiguous columns; None leaves one out."""
        packed = {}
        for name, column in columns.items():
            if column is not None:
                packed[name] = pack(column, packing)
        return ColumnMessage(head, packed)

    def SerializeToString(self) -> bytes:  # noqa: N802 - as the library's messages have it
        """Return the message's bytes."""
        numbers = _NUMBERS[type(self._head)]
        pieces: list[bytes | memoryview] = [self._head.SerializeToString()]
        for name, column in self._columns.items():
            pieces += (_before(numbers[name], column.form, len(column.data)), column.data)
        return b"".join(pieces)


def parse(kind: type[Message], raw: bytes) -> Any:
    """Return the message of type `kind` in `raw`, a ColumnMessage where it has columns; else InputError."""
    names = _COLUMNS.get(kind)
    try:
        if not names:
            return kind.FromString(raw)
        head, found = _split(raw, names)
        return ColumnMessage(kind.FromString(head), found)
    except (DecodeError, IndexError) as error:
        raise InputError(f"not a {kind.DESCRIPTOR.name}: {error}") from None


def _split(raw: bytes, names: dict[int, str]) -> tuple[bytes, dict[str, Column]]:
    """Return the bytes of all fields that are no columns, and the columns."""
    whole = memoryview(raw)
    head: list[memoryview] = []
    found: dict[str, Column] = {}
    for start, key, first, end in _fields(raw, 0, len(raw)):
        name = names.get(key >> 3) if key & 7 == _BYTES else None
        if name is None:
            head.append(whole[start:end])
        elif name in found:
            raise DecodeError(f"{name} comes twice")
        else:
            column = ABSENT
            for _, form, at, stop in _fields(raw, first, end):  # of the Packed; unknown ones are passed over
                if form == _PLAIN_KEY:  # of two, which no encoder writes, the last counts
                    column = Column("plain", whole[at:stop])
                elif form == _LZ4_KEY:
                    column = Column("lz4", whole[at:stop])
            found[name] = column
    return b"".join(head), found


def _fields(raw: bytes, place: int, stop: int) -> list[_Field]:
    """Return the fields of the message in raw[place:stop]; DecodeError or IndexError where it is none."""
    fields = []
    while place < stop:
        start = place
        key = raw[place]
        place += 1
        if key >= 0x80:
            key, place = _read_varint(raw, start)
        wire = key & 7
        if wire == _BYTES:
            size = raw[place]
            place += 1
            if size >= 0x80:  # most often of two bytes, which a call would cost more than
                more = raw[place]
                if more < 0x80:
                    size, place = size & 0x7F | more << 7, place + 1
                else:
                    size, place = _read_varint(raw, place - 1)
            first, place = place, place + size
        elif wire == _VARINT:
            first = place
            _, place = _read_varint(raw, place)
        elif wire in (_FIXED64, _FIXED32):
            first, place = place, place + (8 if wire == _FIXED64 else 4)
        else:
            raise DecodeError(f"wire type {wire}")
        if not 0 < key >> 3 <= _NUMBER_MAX:
            raise DecodeError(f"field number {key >> 3}")
        if place > stop:
            raise DecodeError("it ends within a field")
        fields.append((start, key, first, place))
    return fields


def _read_varint(raw: bytes, place: int) -> tuple[int, int]:
    """Return the number at `place` and where it ends."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES_MAX, 7):
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise DecodeError("a number of more than 10 bytes")


@lru_cache(maxsize=1024)  # batches have few sizes
def _before(number: int, form: str | None, size: int) -> bytes:
    """Return what precedes the `size` bytes of column `number`: the tags and sizes of Packed and field."""
    inner = _tag(_LZ4 if form == "lz4" else _PLAIN) + _varint(size)
    return _tag(number) + _varint(len(inner) + size) + inner


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
