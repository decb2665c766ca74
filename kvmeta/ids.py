"""File IDs: 16 opaque bytes, as columns.

The rules are the same everywhere: a `str` is a *key* (its UTF-8 bytes, surrogateescape, hashed by XXH3-128
with seed 0 in canonical big-endian form), never hex; `bytes` is a raw ID of exactly 16, never hashed; `int`
(big-endian) and `uuid.UUID` are IDs. Arrays may be ID[n] (V16), u1[n, 16], u8[n] (zero-extended) or u8[n, 2]
(high, low).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvmeta.errors import InputError

ID: np.dtype[np.void] = np.dtype("V16")
ID_BYTES = 16
_INT_MAX = (1 << 128) - 1

IdArray = NDArray[np.void]


def as_ids(ids: Any) -> IdArray:
    """Return `ids` as a C-contiguous ID[n].

    Accepts the arrays of this module's rules, one scalar (str, bytes, int, UUID: n = 1) or a sequence of such
    scalars, mixed as you like. Raises InputError naming what was wrong and where.
    """
    if isinstance(ids, np.ndarray):
        return _from_array(ids)
    if isinstance(ids, (str, bytes, int, uuid.UUID, np.integer, np.void)):
        return np.frombuffer(_id_bytes(ids, "id"), ID)
    if isinstance(ids, (bytearray, memoryview)):
        raise InputError(
            f'ids: {type(ids).__name__} is ambiguous; give bytes (one ID) or np.frombuffer(raw, "V16")'
        )
    if not isinstance(ids, Iterable):
        raise InputError(f"ids: expected an array or a sequence of IDs, got {type(ids).__name__}")
    return np.frombuffer(b"".join([_id_bytes(each, f"ids[{i}]") for i, each in enumerate(ids)]), ID)


def ids_from_ints(values: Any) -> IdArray:
    """Return the ID[n] of integers in [0, 2**128): an integer array [n], or a sequence of Python integers."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        if values.ndim != 1:
            raise InputError(f"values: expected one dimension, got shape {values.shape}")
        if values.dtype.kind == "i" and len(values) and values.min() < 0:
            raise InputError(f"values[{int(values.argmin())}]: an ID cannot be negative ({values.min()})")
        return _from_halves(None, values.astype(np.uint64))
    if isinstance(values, np.ndarray) and values.dtype != object:
        raise InputError(f"values: expected integers, got dtype {values.dtype}")
    out = bytearray()
    for i, each in enumerate(values):
        if isinstance(each, bool) or not isinstance(each, (int, np.integer)):
            raise InputError(f"values[{i}]: expected an integer, got {type(each).__name__}")
        out += _int_bytes(int(each), f"values[{i}]")
    return np.frombuffer(bytes(out), ID)


def ids_from_keys(keys: Any) -> IdArray:
    """Return the ID[n] of keys: XXH3-128 of each key's bytes, seed 0, canonical big-endian.

    `keys` is a sequence of str or bytes, or an Arrow string or binary array (pyarrow, chunked or not; nulls
    are refused), which is hashed from its buffers without a Python string per key.
    """
    if isinstance(keys, (str, bytes)):
        raise InputError("keys: expected a sequence of keys, got one; write ids_from_keys([key])")
    if hasattr(keys, "to_arrow") and not hasattr(keys, "buffers"):
        keys = keys.to_arrow()
    if hasattr(keys, "chunks") and hasattr(keys, "type"):
        parts = [ids_from_keys(chunk) for chunk in keys.chunks]
        return np.concatenate(parts) if parts else np.empty(0, ID)
    if hasattr(keys, "buffers") and hasattr(keys, "type"):
        return _from_arrow(keys)
    digest = xxhash.xxh3_128_digest
    try:
        return np.frombuffer(b"".join([digest(_key_bytes(each)) for each in keys]), ID)
    except TypeError:
        wrong = next((i, each) for i, each in enumerate(keys) if not isinstance(each, (str, bytes)))
        raise InputError(f"keys[{wrong[0]}]: expected str or bytes, got {type(wrong[1]).__name__}") from None


def ids_from_key_column(names: NDArray[np.uint8], ends: NDArray[np.int64], start: int = 0) -> IdArray:
    """Return the ID[n] of keys that lie back to back in `names`.

    Key i ends at `ends[i]`; the first starts at `start`.
    """
    digest, view = xxhash.xxh3_128_digest, memoryview(np.ascontiguousarray(names).data)
    spans = pairwise([start, *ends.tolist()])
    return np.frombuffer(b"".join([digest(view[a:b]) for a, b in spans]), ID)


def ids_from_hex(texts: str | Sequence[str]) -> IdArray:
    """Return the ID[n] of texts of exactly 32 hexadecimal digits (one text: n = 1)."""
    if isinstance(texts, str):
        texts = [texts]
    for i, text in enumerate(texts):
        if not isinstance(text, str) or len(text) != 2 * ID_BYTES:
            raise InputError(f"hex[{i}]: expected 32 hexadecimal digits, got {text!r}")
    try:
        raw = bytes.fromhex("".join(texts))
    except ValueError:
        raw = b""
    if len(raw) != ID_BYTES * len(texts):
        wrong = next(i for i, text in enumerate(texts) if not _is_hex(text))
        raise InputError(f"hex[{wrong}]: expected 32 hexadecimal digits, got {texts[wrong]!r}")
    return np.frombuffer(raw, ID)


def ids_to_hex(ids: Any) -> list[str]:
    """Return each ID as 32 lower-case hexadecimal digits."""
    text = as_ids(ids).tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]


def ids_from_uuids(uuids: Iterable[uuid.UUID]) -> IdArray:
    """Return the ID[n] of UUIDs: their 16 bytes in network order."""
    out = bytearray()
    for i, each in enumerate(uuids):
        if not isinstance(each, uuid.UUID):
            raise InputError(f"uuids[{i}]: expected uuid.UUID, got {type(each).__name__}")
        out += each.bytes
    return np.frombuffer(bytes(out), ID)


def _from_array(ids: NDArray[Any]) -> IdArray:
    kind, size = ids.dtype.kind, ids.dtype.itemsize
    if ids.dtype.names is None and kind == "V" and size == ID_BYTES:
        return np.ascontiguousarray(_one_dimension(ids)).view(ID)
    if kind == "u" and size == 1 and ids.ndim == 2 and ids.shape[1] == ID_BYTES:
        return np.ascontiguousarray(ids).view(ID).reshape(-1)
    if kind == "u" and size == 8 and ids.ndim == 1:
        return _from_halves(None, ids)
    if kind == "u" and size == 8 and ids.ndim == 2 and ids.shape[1] == 2:
        return _from_halves(ids[:, 0], ids[:, 1])
    if kind == "O" and ids.ndim == 1:
        return as_ids(ids.tolist())
    if kind == "S":
        raise InputError(
            f"ids: dtype {ids.dtype} is refused, for numpy strips its trailing NUL bytes; "
            'use dtype V16: np.frombuffer(raw, "V16")'
        )
    if kind == "U":
        raise InputError(
            f"ids: dtype {ids.dtype} holds text; hash keys with kvmeta.ids_from_keys(array.tolist())"
        )
    hint = "; for integers use kvmeta.ids_from_ints" if kind == "i" or (kind == "u" and size < 8) else ""
    raise InputError(
        f"ids: expected V16[n], uint8[n,16], uint64[n] or uint64[n,2], got {ids.dtype}{list(ids.shape)}{hint}"
    )


def _one_dimension(ids: NDArray[Any]) -> NDArray[Any]:
    if ids.ndim != 1:
        raise InputError(f"ids: expected one dimension, got shape {ids.shape}")
    return ids


def _from_halves(high: NDArray[np.uint64] | None, low: NDArray[np.uint64]) -> IdArray:
    out = np.zeros((len(low), 2), ">u8")
    if high is not None:
        out[:, 0] = high
    out[:, 1] = low
    return out.view(ID).reshape(-1)


def _from_arrow(array: Any) -> IdArray:
    kind = str(array.type)
    if array.null_count:
        raise InputError(
            f"keys: {array.null_count} of {len(array)} Arrow values are null; a key cannot be null"
        )
    if kind not in ("string", "binary", "large_string", "large_binary"):
        if "string" in kind or "binary" in kind:  # views and dictionaries have no plain offsets
            return ids_from_keys(array.to_pylist())
        raise InputError(f"keys: expected an Arrow string or binary array, got {kind}")
    if not len(array):
        return np.empty(0, ID)
    _, offsets_buffer, values = array.buffers()
    offset_type = "<i8" if kind.startswith("large") else "<i4"
    offsets = np.frombuffer(offsets_buffer, offset_type)[array.offset : array.offset + len(array) + 1]
    names = np.frombuffer(values if values is not None else b"", np.uint8)
    return ids_from_key_column(names, offsets[1:].astype(np.int64), int(offsets[0]))


def _key_bytes(key: str | bytes) -> bytes:
    return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else bytes(_bytes_only(key))


def _bytes_only(key: Any) -> bytes:
    if not isinstance(key, bytes):
        raise TypeError
    return key


def _id_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, str):
        return bytes(xxhash.xxh3_128_digest(value.encode("utf-8", "surrogateescape")))
    if isinstance(value, (bytes, np.void)):
        raw = value if isinstance(value, bytes) else value.tobytes()
        if len(raw) != ID_BYTES:
            raise InputError(
                f"{where}: a raw ID has exactly 16 bytes, got {len(raw)}; hash keys with kvmeta.ids_from_keys"
            )
        return raw
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return _int_bytes(int(value), where)
    raise InputError(
        f"{where}: expected str (a key), bytes (16), int or uuid.UUID, got {type(value).__name__}"
    )


def _int_bytes(value: int, where: str) -> bytes:
    if not 0 <= value <= _INT_MAX:
        raise InputError(f"{where}: an integer ID lies in [0, 2**128), got {value}")
    return value.to_bytes(ID_BYTES, "big")


def _is_hex(text: str) -> bool:
    return all(each in "0123456789abcdefABCDEF" for each in text)
