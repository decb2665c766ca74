"""Columns as the protocol has them: little-endian bytes, plain or as one LZ4 block where that is shorter.

    plain:  value 0 | value 1 | …
    lz4:    size of the values in bytes, u4 | one LZ4 block

What comes from outside is checked before anything is allocated for it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import InputError
from kvmeta.v1 import kvmeta_pb2 as pb

PLAIN = pb.COMPRESSION_UNSPECIFIED
LZ4 = pb.COMPRESSION_LZ4

CODE: np.dtype[np.uint8] = np.dtype(np.uint8)
"""One of `codes.State` or `codes.Outcome`."""
VERSION: np.dtype[np.uint64] = np.dtype("<u8")
_SIZE_BYTES = 4
_WHOLE = {1: "u1", 8: "u8", 16: "V16", 24: "V24"}


class Column(NamedTuple):
    """A column's bytes, most often somebody else's; `form` is None where the message has no such column."""

    form: Literal["plain", "lz4"] | None
    data: bytes | memoryview


ABSENT = Column(None, b"")


def pack(column: NDArray[Any], compression: pb.Compression = PLAIN) -> Column:
    """Return a C-contiguous column as bytes; with LZ4 compressed where that is shorter."""
    plain = column.reshape(-1).view(np.uint8).data
    if compression == LZ4:
        block: bytes = lz4.block.compress(plain, store_size=True)
        if len(block) < len(plain):
            return Column("lz4", block)
    return Column("plain", plain)


def unpack(column: Column, dtype: np.dtype[Any], rows: int, name: str) -> NDArray[Any]:
    """Return column `name` as dtype[rows], read-only; InputError where it is not exactly that."""
    out = unpack_up_to(column, dtype, rows, name)
    if len(out) != rows:
        raise _other_rows(name, rows, dtype, out.nbytes)
    return out


def unpack_up_to(column: Column, dtype: np.dtype[Any], rows_max: int, name: str) -> NDArray[Any]:
    """Return column `name` as dtype[n], n <= rows_max, read-only; InputError where it is something else."""
    data = _plain(column, rows_max * dtype.itemsize, name)
    if len(data) % dtype.itemsize:
        raise InputError(f"{name}: {len(data)} bytes are no multiple of the {dtype.itemsize} of a row")
    return np.frombuffer(data, dtype)


def fill(column: Column, out: NDArray[Any], rows: slice | NDArray[np.int64], name: str) -> None:
    """Fill rows of the C-contiguous `out` with column `name`; InputError where it is not exactly that.

    Rows are copied as bytes: numpy copies rows of several fields field by field, 20 times as slowly.
    """
    if isinstance(rows, slice):
        room, data = out[rows], column.data
        if column.form == "lz4" or len(data) != room.nbytes:
            data = _plain(column, room.nbytes, name)
            if len(data) != room.nbytes:
                raise _other_rows(name, len(room), out.dtype, len(data))
        room.view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        return
    whole = _WHOLE[out.itemsize]
    out.view(whole)[rows] = unpack(column, out.dtype, len(rows), name).view(whole)


def _plain(column: Column, bytes_max: int, name: str) -> bytes | memoryview:
    """Return the values' bytes, at most `bytes_max`."""
    data = column.data
    size = int.from_bytes(data[:_SIZE_BYTES], "little") if column.form == "lz4" else len(data)
    if size > bytes_max:
        raise InputError(f"{name}: {size} bytes; at most {bytes_max} are taken here, so split the batch")
    return _decompressed(data, size, name) if column.form == "lz4" else data


def _decompressed(block: bytes | memoryview, size: int, name: str) -> bytes:
    try:
        data: bytes = lz4.block.decompress(block[_SIZE_BYTES:], uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise InputError(f"{name}: the LZ4 block is corrupt ({error})") from None
    if len(data) != size:
        raise InputError(f"{name}: the LZ4 block holds {len(data)} bytes, its size field says {size}")
    return data


def _other_rows(name: str, rows: int, dtype: np.dtype[Any], size: int) -> InputError:
    got = f"{size // dtype.itemsize} rows" if size % dtype.itemsize == 0 else f"{size} bytes"
    return InputError(f"{name}: expected {rows} rows of {dtype.itemsize} bytes, got {got}")
