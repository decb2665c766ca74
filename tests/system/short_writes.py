"""Lets one write of a running process take only half its bytes: the kernel really writes no more.

    python short_writes.py PID CALL WHEN TRACE

strace can only forge a call's result, and a forged short write leaves bytes unwritten of which the caller is
told that they are written. This tracer halves the third argument of each thread's WHEN-th CALL before it is
made, and tells so in TRACE.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from contextlib import suppress

MACHINES = {"x86_64": {"write": 1, "pwrite64": 18}, "aarch64": {"write": 64, "pwrite64": 68}}
"""The calls' numbers."""
_COUNT = {"x86_64": 12, "aarch64": 2}  # which register has the third argument

_SEIZE, _INTERRUPT, _SYSCALL, _SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
_GETREGSET, _SETREGSET, _GENERAL = 0x4204, 0x4205, 1
_SYSGOOD, _CLONE, _ALL_THREADS = 1, 1 << 3, 0x40000000
_ENTRY, _EXIT = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class _Registers(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint64 * 64),)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _ptrace(request: int, thread: int, address: int = 0, value: int = 0) -> None:
    if _libc.ptrace(request, thread, address, value) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _set_count(thread: int, count: int) -> None:
    registers = _Registers()
    vector = _Vector(ctypes.addressof(registers), ctypes.sizeof(registers))
    _ptrace(_GETREGSET, thread, _GENERAL, ctypes.addressof(vector))
    registers.words[_COUNT[platform.machine()]] = count
    _ptrace(_SETREGSET, thread, _GENERAL, ctypes.addressof(vector))


def trace(pid: int, call: str, when: int, told: str) -> None:
    """Trace `pid` to its end."""
    number = MACHINES[platform.machine()][call]
    info = (ctypes.c_uint64 * 11)()
    seen: dict[int, int] = {}  # by thread
    shortened: dict[int, int] = {}  # threads in a shortened call: its count
    with open(told, "w", buffering=1) as out:
        _ptrace(_SEIZE, pid, 0, _SYSGOOD | _CLONE)
        _ptrace(_INTERRUPT, pid)
        while True:
            try:
                thread, status = os.waitpid(-1, _ALL_THREADS)
            except ChildProcessError:  # all are gone
                return
            if not os.WIFSTOPPED(status):
                continue
            deliver = 0
            if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
                _ptrace(_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
                kind = info[0] & 0xFF
                if kind == _ENTRY and info[3] == number:
                    seen[thread] = seen.get(thread, 0) + 1
                    if seen[thread] == when:
                        shortened[thread] = info[6]
                        _set_count(thread, info[6] // 2)
                elif kind == _EXIT and thread in shortened:
                    count = shortened.pop(thread)
                    _set_count(thread, count)  # the caller may rely on the register
                    out.write(f"{thread} {call} of {count} bytes = {info[3]} (SHORT)\n")
            elif not status >> 16:
                deliver = os.WSTOPSIG(status)
            with suppress(ProcessLookupError):
                _ptrace(_SYSCALL, thread, 0, deliver)


if __name__ == "__main__":
    trace(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
