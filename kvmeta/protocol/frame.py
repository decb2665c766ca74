"""Messages that are mostly columns, read and written without copying those about.

The protobuf library copies a bytes field when it is set, when the message is serialised, when it is parsed
and when the field is read. So a `Frame` lets the library do the head of a message, which is small, and keeps
the columns, its fields of type `Packed`, as views:

    serialise   the head's bytes, then each column: tag, size, tag, size, the column's own bytes
    parse       columns become views of the message's bytes; all other fields are the head

This is plain protobuf encoding: serialised messages that are joined are one message. A test compares both
ways with the library's own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from kvmeta.errors import InputError
from kvmeta.protocol.packed import compressed
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import peer_pb2 as peer

_PLAIN, _LZ4 = 1, 2  # the fields of Packed
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_VARINT_BYTES_MAX = 10
_NUMBER_MAX = (1 << 29) - 1
_FORMS = {_PLAIN << 3 | _BYTES: "plain", _LZ4 << 3 | _BYTES: "lz4"}


class View(NamedTuple):
    """A column as bytes that belong to somebody else; it is read like a `Packed`."""

    form: str | None
    data: memoryview

    @property
    def plain(self) -> memoryview:
        """Return the values as they are."""
        return self.data if self.form == "plain" else memoryview(b"")

    @property
    def lz4(self) -> memoryview:
        """Return the size and the LZ4 block."""
        return self.data if self.form == "lz4" else memoryview(b"")

    def WhichOneof(self, _: str) -> str | None:  # noqa: N802 - as the library's messages have it
        """Return which of the two is set."""
        return self.form


def _columns_of(kind: Descriptor) -> dict[int, str]:
    return {each.number: each.name for each in kind.fields if each.message_type is pb.Packed.DESCRIPTOR}


_COLUMNS = {
    getattr(module, name): _columns_of(kind)
    for module in (pb, peer)
    for name, kind in module.DESCRIPTOR.message_types_by_name.items()
}
"""Of each message of the protocol: the numbers and names of its columns."""
_NUMBERS = {kind: {name: number for number, name in names.items()} for kind, names in _COLUMNS.items()}

_NONE = View(None, memoryview(b""))


class Frame:
    """A message: `head` and its columns. Fields of both are attributes, as of the library's messages."""

    __slots__ = ("_columns", "_head")

    def __init__(self, head: Message, columns: dict[str, View]) -> None:
        self._head = head
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        if name in _NUMBERS[type(self._head)]:
            return self._columns.get(name, _NONE)
        return getattr(self._head, name)

    @staticmethod
    def of(head: Message, packing: pb.Compression, **columns: NDArray[Any] | None) -> Frame:
        """Return the message of `head` and C-contiguous columns; None leaves one out."""
        views = {name: _view(column, packing) for name, column in columns.items() if column is not None}
        return Frame(head, views)

    def SerializeToString(self) -> bytes:  # noqa: N802 - as the library's messages have it
        """Return the message's bytes."""
        numbers = _NUMBERS[type(self._head)]
        pieces: list[bytes | memoryview] = [self._head.SerializeToString()]
        for name, column in self._columns.items():
            pieces += [_before(numbers[name], column.form, len(column.data)), column.data]
        return b"".join(pieces)


def parse(kind: type[Message], raw: bytes) -> Any:
    """Return the message of type `kind` in `raw`, a Frame where it has columns; else InputError."""
    names = _COLUMNS.get(kind)
    try:
        if not names:
            return kind.FromString(raw)
        head, found = _split(raw, names)
        return Frame(kind.FromString(head), found)
    except (DecodeError, IndexError) as error:
        raise InputError(f"not a {kind.DESCRIPTOR.name}: {error}") from None


def _view(column: NDArray[Any], packing: pb.Compression) -> View:
    plain = column.reshape(-1).view(np.uint8).data
    block = compressed(plain, packing)
    return View("plain", plain) if block is None else View("lz4", memoryview(block))


def _split(raw: bytes, names: dict[int, str]) -> tuple[bytes, dict[str, View]]:
    """Return the bytes of all fields that are no columns, and the columns."""
    whole = memoryview(raw)
    head: list[memoryview] = []
    found: dict[str, View] = {}
    end = 0
    while end < len(raw):
        start = end
        key, first, end = _field(raw, start)
        name = names.get(key >> 3) if key & 7 == _BYTES else None
        if name is None:
            head.append(whole[start:end])
        elif name in found:
            raise DecodeError(f"{name} comes twice")
        else:
            found[name] = _packed(raw, first, end)
    return b"".join(head), found


def _packed(raw: bytes, place: int, end: int) -> View:
    """Return the view that the Packed in raw[place:end] describes; unknown fields are passed over."""
    view = _NONE
    while place < end:
        key, first, place = _field(raw, place)
        if place > end:
            raise DecodeError("a column ends within a field")
        if key in _FORMS:  # of two, which no encoder writes, the last counts
            view = View(_FORMS[key], memoryview(raw)[first:place])
    return view


def _field(raw: bytes, place: int) -> tuple[int, int, int]:
    """Return the key (number << 3 | wire type) of the field at `place`, where its value begins and ends."""
    key, first = _read_varint(raw, place)
    wire = key & 7
    if wire == _BYTES:
        size, first = _read_varint(raw, first)
        end = first + size
    elif wire == _VARINT:
        _, end = _read_varint(raw, first)
    elif wire in (_FIXED64, _FIXED32):
        end = first + (8 if wire == _FIXED64 else 4)
    else:
        raise DecodeError(f"wire type {wire}")
    if not 0 < key >> 3 <= _NUMBER_MAX:
        raise DecodeError(f"field number {key >> 3}")
    if end > len(raw):
        raise DecodeError("it ends within a field")
    return key, first, end


def _read_varint(raw: bytes, place: int) -> tuple[int, int]:
    value = raw[place]
    place += 1
    if value < 0x80:
        return value, place
    value &= 0x7F
    for shift in range(7, 7 * _VARINT_BYTES_MAX, 7):
        byte = raw[place]
        place += 1
        if byte < 0x80:
            return value | byte << shift, place
        value |= (byte & 0x7F) << shift
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
