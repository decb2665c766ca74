"""Loads, stores, prefetch and fence at raw addresses: the few machine operations numba does not spell."""

import os
import tempfile

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils, event
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from kvmeta import compiling

# A thread may be loading a kernel when another forks; the child would wait for its lock for ever.
os.register_at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)


class _Compilations(event.Listener):
    """Notes when a kernel is compiled; one that the cache has is loaded without an event."""

    def on_start(self, _: event.Event) -> None:
        compiling.begins()

    def on_end(self, _: event.Event) -> None:
        pass


event.register("numba:compile", _Compilations())


def _ensure_cache() -> None:
    """Where neither the package's folder nor the user's cache can be written, cache in a temporary folder."""
    try:
        numba.njit(cache=True)(_ensure_cache)
    except RuntimeError:  # "no locator available"
        folder = f"{tempfile.gettempdir()}/kvmeta-numba-{os.getuid()}"
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]


_ensure_cache()
njit = numba.njit(nogil=True, cache=True)


def _loader(bits, result):
    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer)
            value.align = 1  # rows are byte-packed
            return value

        return result(types.uint64), generate

    return load


load_u64 = _loader(64, types.uint64)
load_u32 = _loader(32, types.uint32)
load_u8 = _loader(8, types.uint8)


def _storer(bits, kind):
    @intrinsic
    def store(typing_context, address, value):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            builder.store(arguments[1], pointer).align = 1
            return context.get_dummy_value()

        return types.void(types.uint64, kind), generate

    return store


store_u64 = _storer(64, types.uint64)
store_u32 = _storer(32, types.uint32)
store_u8 = _storer(8, types.uint8)


@njit
def field(record, which):
    """Return u8 field `which` of the record at address `record`."""
    return load_u64(record + types.uint64(which) * types.uint64(8))


@njit
def entry(table, i):
    """Return the address of row i of a u8 table [n, fields].

    An address, not a row view: a view would count references at every use.
    """
    return types.uint64(table.ctypes.data) + types.uint64(i) * types.uint64(table.shape[1]) * types.uint64(8)


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line at `address`; never faults and never waits."""

    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(arguments[0], byte), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def release_fence(typing_context):
    """Order every store before the fence ahead of every store after it, for compiler and processor."""

    def generate(context, builder, signature, arguments):
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def byte_swap(typing_context, value):
    """Return a u8 with its bytes in the opposite order."""

    def generate(context, builder, signature, arguments):
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


_madvise = types.ExternalFunction("madvise", types.int32(types.uint64, types.uint64, types.int32))
_close = types.ExternalFunction("close", types.int32(types.int32))
_getpid = types.ExternalFunction("getpid", types.int32())
# The C library has no name for these two before glibc 2.36; their numbers are the same on every architecture.
_syscall = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.int64, types.uint64, types.uint64, types.int64, types.int64)
)
_PIDFD_OPEN, _PROCESS_MADVISE, _WILLNEED = 434, 440, 3
RANGES_MAX = 1024


@njit
def will_need(ranges, count):
    """Start reading ranges[:count], u8[RANGES_MAX at most, 2] of address and length: one system call for all.

    `process_madvise` (Linux 5.10); where the kernel has none or refuses, one `madvise` a range.
    """
    if count == 0:
        return
    us = _syscall(_PIDFD_OPEN, _getpid(), types.uint64(0), types.uint64(0), 0, 0)
    advised = _syscall(
        _PROCESS_MADVISE, us, types.uint64(ranges.ctypes.data), types.uint64(count), _WILLNEED, 0
    )
    if us >= 0:
        _close(types.int32(us))
    if advised < 0:
        for i in range(count):
            _madvise(ranges[i, 0], ranges[i, 1], _WILLNEED)
