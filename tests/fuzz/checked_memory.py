"""The engine's kernels as plain Python over checked memory, so that a wild access is an exception.

Kernels take addresses (docs/decisions/0006), and atheris sees nothing of what numba compiles. `install`, with
NUMBA_DISABLE_JIT=1 and before anything imports the kernels, gives them loads and stores that raise
`WildAccessError` unless the bytes lie within an array or a mapping that the engine's modules have made.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash

_KERNELS = "kvmeta.engine.kernels"
_NEWEST = 512  # arrays remembered: those of one input
_regions: list[tuple[int, int, Callable[[], Any]]] = []
"""First byte, end, and whether whoever owns the bytes lives."""


class WildAccessError(Exception):
    """A kernel reads or writes what is not its own."""


def install() -> None:
    """Replace the kernels' machine operations, and watch what the engine's modules allocate."""
    if os.environ.get("NUMBA_DISABLE_JIT") != "1" or f"{_KERNELS}.directory" in sys.modules:
        raise RuntimeError("checked memory needs NUMBA_DISABLE_JIT=1, before any import of the engine")
    np.seterr(over="ignore")  # kernels count modulo 2**64
    memory: Any = importlib.import_module(f"{_KERNELS}.memory")
    for bits, kind in ((8, ctypes.c_uint8), (32, ctypes.c_uint32), (64, ctypes.c_uint64)):
        if hasattr(memory, f"load_u{bits}"):
            setattr(memory, f"load_u{bits}", _loader(kind))
            setattr(memory, f"store_u{bits}", _storer(kind))
    memory.prefetch = memory.will_need = memory.release_fence = lambda *_: None
    memory.byte_swap = lambda value: np.uint64(int.from_bytes(int(value).to_bytes(8, "little"), "big"))
    hashing: Any = importlib.import_module(f"{_KERNELS}.hashing")
    hashing.page_checksum = lambda address, seed, page: _page_checksum(hashing, address, seed, page)
    importlib.import_module("kvmeta.engine.window")
    watched: Any = _Watched()
    for name, module in list(sys.modules.items()):
        if name.startswith("kvmeta.engine.") and hasattr(module, "np"):
            vars(module)["np"] = watched


def forget() -> None:
    """Forget every array: the next input begins."""
    _regions.clear()


class _Watched:
    """numpy, which remembers the arrays it returns."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value

        def remembering(*arguments: Any, **more: Any) -> Any:
            result = value(*arguments, **more)
            if isinstance(result, np.ndarray):
                low, high = np.lib.array_utils.byte_bounds(result)
                _regions.append((low, high, _owner(result)))
                del _regions[:-_NEWEST]
            return result

        return remembering


def _owner(array: Any) -> Callable[[], Any]:
    """Return what gives the owner of an array's bytes, another array or a mapping, while that lives."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    root = array if array.base is None else array.base
    root = root.obj if isinstance(root, memoryview) else root
    try:
        return weakref.ref(root)
    except TypeError:  # bytes, which are kept alive instead
        return lambda: root


def _checked(address: int, size: int) -> None:
    for i, (low, high, lives) in enumerate(reversed(_regions)):
        if low <= address and address + size <= high and lives() is not None:
            if i > 4:  # what is used is soon used again
                _regions.append(_regions.pop(-1 - i))
            return
    raise WildAccessError(f"{size} bytes at {address:#x} belong to no array")


def _loader(kind: Any) -> Any:
    size = ctypes.sizeof(kind)

    def load(address: Any) -> np.uint64:
        _checked(int(address), size)
        return np.uint64(kind.from_address(int(address)).value)

    return load


def _storer(kind: Any) -> Any:
    size = ctypes.sizeof(kind)

    def store(address: Any, value: Any) -> None:
        _checked(int(address), size)
        kind.from_address(int(address)).value = int(value)

    return store


def _page_checksum(hashing: Any, address: Any, seed: Any, page: Any) -> np.uint64:
    """Return what the kernel of this name does, by the library: a page has 511 words."""
    size = hashing.PAYLOAD_BYTES
    _checked(int(address), size)
    seed = int(hashing.finalise(np.uint64(seed) + np.uint64(page)))
    return np.uint64(xxhash.xxh64_intdigest(ctypes.string_at(int(address), size), seed))
