"""CRC-32C inside a kernel: the processor's instruction where there is one, tables elsewhere.

`crc32c_update` keeps the *register* (all ones at the start, inverted at the end), so a member that spans
several windows is summed piece by piece. Every piece but the last must be a multiple of 8 bytes, and every
piece begins at a multiple of 8, because the words are read through a uint64 view. Polynomial 0x1EDC6F41,
reflected; the bytes of a word are taken from its low end, so machines are little-endian.
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

_POLYNOMIAL = 0x82F63B78
_ONES = np.uint64(0xFFFFFFFF)
_LOW_BYTE = np.uint64(0xFF)
_HARDWARE = {  # machine -> LLVM feature, word intrinsic, (crc bits, word bits); byte intrinsic, byte bits
    "x86_64": ("sse4.2", "llvm.x86.sse42.crc32.64.64", 64, "llvm.x86.sse42.crc32.32.8", 8),
    "aarch64": ("crc", "llvm.aarch64.crc32cx", 32, "llvm.aarch64.crc32cb", 32),
}


def _tables() -> Any:
    """Return uint64[8, 256]: table k advances a byte that has k more bytes behind it in its word."""
    tables = np.zeros((8, 256), np.uint64)
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
        tables[0, byte] = register
    for k in range(1, 8):
        before = tables[k - 1]
        tables[k] = (before >> np.uint64(8)) ^ tables[0][(before & _LOW_BYTE).astype(np.int64)]
    return tables


_TABLES = _tables()


def has_instruction() -> bool:
    """Tell whether kernels compiled here may use the processor's CRC-32C instruction."""
    compiler: Any = config  # numba fills it at run time
    if compiler.DISABLE_JIT or compiler.CPU_NAME:  # plain Python, or code for another processor
        return False
    machine = _HARDWARE.get(platform.machine())
    return machine is not None and bool(llvmlite.binding.get_host_cpu_features().get(machine[0], False))


def _step(function: str, register_bits: int, operand_bits: int) -> Any:
    """Return an intrinsic (register u64, operand u64) -> u64 that issues one CRC instruction."""

    @intrinsic
    def step(typing_context, register, operand):
        def codegen(context, builder, signature, args):
            wide, narrow, taken = ir.IntType(64), ir.IntType(register_bits), ir.IntType(operand_bits)
            shape = ir.FunctionType(narrow, [narrow, taken])
            instruction = cgutils.get_or_insert_function(builder.module, shape, function)
            first = args[0] if register_bits == 64 else builder.trunc(args[0], narrow)
            second = args[1] if operand_bits == 64 else builder.trunc(args[1], taken)
            result = builder.call(instruction, [first, second])
            return result if register_bits == 64 else builder.zext(result, wide)

        return types.uint64(types.uint64, types.uint64), codegen

    return step


@numba.njit(nogil=True, cache=True)
def crc32c_by_tables(register, chunk, words, start, n):
    """Advance the CRC `register` (u64) over chunk[start : start + n] with tables; `words` is chunk as u64."""
    whole = n >> 3
    at = start >> 3
    for i in range(at, at + whole):
        mixed = words[i] ^ register
        register = (
            _TABLES[7, mixed & _LOW_BYTE]
            ^ _TABLES[6, (mixed >> np.uint64(8)) & _LOW_BYTE]
            ^ _TABLES[5, (mixed >> np.uint64(16)) & _LOW_BYTE]
            ^ _TABLES[4, (mixed >> np.uint64(24)) & _LOW_BYTE]
            ^ _TABLES[3, (mixed >> np.uint64(32)) & _LOW_BYTE]
            ^ _TABLES[2, (mixed >> np.uint64(40)) & _LOW_BYTE]
            ^ _TABLES[1, (mixed >> np.uint64(48)) & _LOW_BYTE]
            ^ _TABLES[0, (mixed >> np.uint64(56)) & _LOW_BYTE]
        )
    for i in range(start + (whole << 3), start + n):
        register = (register >> np.uint64(8)) ^ _TABLES[0, (register ^ np.uint64(chunk[i])) & _LOW_BYTE]
    return register


if has_instruction():
    _feature, _word_function, _word_register_bits, _byte_function, _byte_bits = _HARDWARE[platform.machine()]
    _word = _step(_word_function, _word_register_bits, 64)
    _byte = _step(_byte_function, 32, _byte_bits)

    @numba.njit(nogil=True, cache=True)
    def crc32c_update(register, chunk, words, start, n):
        """Advance the CRC `register` (u64) over chunk[start : start + n]; `words` is chunk as u64."""
        whole = n >> 3
        at = start >> 3
        for i in range(at, at + whole):
            register = _word(register, words[i])
        for i in range(start + (whole << 3), start + n):
            register = _byte(register, np.uint64(chunk[i]))
        return register

else:
    crc32c_update = crc32c_by_tables
