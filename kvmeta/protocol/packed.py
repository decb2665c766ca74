"""Columns as the protocol has them: little-endian bytes, plain or as one LZ4 block where that is shorter.

    plain:  value 0 | value 1 | …
    lz4:    size of the values in bytes, u4 | one LZ4 block

What comes from outside is checked before anything is allocated for it.
"""

from __future__ import annotations

from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import InputError
from kvmeta.v1 import kvmeta_pb2 as pb

PLAIN = pb.COMPRESSION_UNSPECIFIED
LZ4 = pb.COMPRESSION_LZ4

STATE: np.dtype[np.uint8] = np.dtype(np.uint8)
VERSION: np.dtype[np.uint64] = np.dtype("<u8")
_SIZE_BYTES = 4
_WHOLE = {1: "u1", 8: "u8", 16: "V16", 24: "V24"}


def pack(column: NDArray[Any], compression: pb.Compression = PLAIN) -> pb.Packed:
    """Return a C-contiguous column as a message; with LZ4 compressed where that is shorter."""
    plain = column.tobytes()
    block = compressed(plain, compression)
    return pb.Packed(plain=plain) if block is None else pb.Packed(lz4=block)


def compressed(plain: bytes | memoryview, compression: pb.Compression) -> bytes | None:
    """Return the LZ4 form of a column's bytes; None where it is not wanted or not shorter."""
    if compression != LZ4:
        return None
    block: bytes = lz4.block.compress(plain, store_size=True)
    return block if len(block) < len(plain) else None


def unpack(packed: Any, dtype: np.dtype[Any], rows: int, name: str) -> NDArray[Any]:
    """Return column `name` of a Packed as dtype[rows], read-only; InputError where it is not exactly that."""
    column = unpack_up_to(packed, dtype, rows, name)
    if len(column) != rows:
        raise _other_rows(name, rows, dtype, column.nbytes)
    return column


def unpack_into(packed: Any, out: NDArray[Any], name: str) -> None:
    """Fill the C-contiguous `out` with column `name` of a Packed; InputError where it is not exactly that.

    Rows are copied as bytes: numpy copies rows of several fields field by field, 20 times as slowly.
    """
    data = _data(packed, out.nbytes, name)
    if len(data) != out.nbytes:
        raise _other_rows(name, len(out), out.dtype, len(data))
    out.view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def fill(packed: Any, out: NDArray[Any], rows: slice | NDArray[np.int64], name: str) -> None:
    """Fill rows of the C-contiguous `out` with column `name` of a Packed; else InputError."""
    if isinstance(rows, slice):
        unpack_into(packed, out[rows], name)
        return
    given = unpack(packed, out.dtype, len(rows), name)
    whole = _WHOLE[out.itemsize]  # rows of several fields would be copied field by field
    out.view(whole)[rows] = given.view(whole)


def unpack_up_to(packed: Any, dtype: np.dtype[Any], rows_max: int, name: str) -> NDArray[Any]:
    """Return column `name` as dtype[n], n <= rows_max, read-only; InputError where it is something else.

    `packed` is a Packed or a `frame.View` of one.
    """
    data = _data(packed, rows_max * dtype.itemsize, name)
    if len(data) % dtype.itemsize:
        raise InputError(f"{name}: {len(data)} bytes are no multiple of the {dtype.itemsize} of a row")
    return np.frombuffer(data, dtype)


def _data(packed: Any, bytes_max: int, name: str) -> bytes | memoryview:
    """Return the values' bytes, at most `bytes_max`."""
    if packed.WhichOneof("form") == "lz4":
        return _decompressed(packed.lz4, bytes_max, name)
    plain: bytes | memoryview = packed.plain
    _check_size(len(plain), bytes_max, name)
    return plain


def _other_rows(name: str, rows: int, dtype: np.dtype[Any], size: int) -> InputError:
    got = f"{size // dtype.itemsize} rows" if size % dtype.itemsize == 0 else f"{size} bytes"
    return InputError(f"{name}: expected {rows} rows of {dtype.itemsize} bytes, got {got}")


def _decompressed(block: bytes | memoryview, bytes_max: int, name: str) -> bytes:
    size = int.from_bytes(block[:_SIZE_BYTES], "little")
    _check_size(size, bytes_max, name)
    try:
        data: bytes = lz4.block.decompress(block[_SIZE_BYTES:], uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise InputError(f"{name}: the LZ4 block is corrupt ({error})") from None
    if len(data) != size:
        raise InputError(f"{name}: the LZ4 block holds {len(data)} bytes, its size field says {size}")
    return data


def _check_size(size: int, bytes_max: int, name: str) -> None:
    if size > bytes_max:
        raise InputError(f"{name}: {size} bytes; at most {bytes_max} are taken here, so split the batch")
