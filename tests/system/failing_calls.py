"""Faults at every index of the scripted workload's system calls, each proved to have fired.

A trace of the workload (tests/crash/script.py) says which calls it makes and how often; a point is the n-th
such call of a thread and a fault. The tracer attaches to a process that waits for its word, so that only the
workload's calls count. What is left is opened and judged by a fresh process.
"""

from __future__ import annotations

import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from kvmeta.engine import filenames
from tests.crash import script
from tests.crash.processes import fresh
from tests.patience import HANG_S
from tests.system import short_writes

WRITES = {"write", "pwrite64"}
CHANGES = WRITES | {
    "writev", "pwritev", "fsync", "fdatasync", "sync_file_range", "msync", "openat", "creat",
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "symlink",
    "symlinkat", "link", "ftruncate", "truncate", "fallocate",
}  # fmt: skip
READS = {"read", "pread64", "readv", "preadv", "getdents64"}
SEGMENTS_MAX = 200  # more than the workload makes: of mappings, only those of segments count
FREES = {"unlink", "unlinkat", "rmdir"}  # no call of them needs space
SHORT = "short write"
HANGS = "wrong it hangs"
TRACES = 6  # RocksDB's diary has a line more now and then
TRIES = 3  # of a point whose fault did not fire, for a thread of RocksDB's came to make fewer calls


@dataclass(frozen=True)
class Point:
    """A fault at a thread's `index`-th call."""

    call: str
    index: int
    fault: str


@dataclass(frozen=True)
class Outcome:
    """What came of a point: how the workload ended, after how many steps, and what is wrong."""

    fired: bool
    ended: str
    done: int
    wrong: str | None


def faults_of(call: str, index: int) -> list[str]:
    """Return the faults that are tried at a call."""
    if call == "mmap":
        return ["ENOMEM"]
    if call in READS:
        return ["EIO"]
    faults = ["kill", "EIO"]
    if call == "openat":
        faults.append(("EMFILE", "ENOSPC")[index % 2])
    elif call not in FREES:
        faults.append("ENOSPC")
    if call in WRITES and platform.machine() in short_writes.MACHINES:
        faults.append(SHORT)
    return faults


def points(work: Path) -> list[Point]:
    """Return every point of the workload: the calls that some traces of it have in common."""
    traces = [_calls_made(work) for _ in range(TRACES)]
    common = {call: min(trace[call] for trace in traces) for call in traces[0]}
    return [
        Point(call, index, fault)
        for call in sorted(common)
        for index in range(1, common[call] + 1)
        for fault in faults_of(call, index)
    ]


def _calls_made(work: Path) -> Counter[str]:
    """Return how often a thread makes each call at most."""
    with _Workload(work) as workload:
        workload.play(lambda pid: ["strace", "-f", "-q", "-y", "-o", str(workload.trace), "-p", str(pid)])
        assert workload.told.end, workload.told
        assert workload.told.done == len(script.SCRIPT), workload.told
        told = workload.trace.read_text(errors="replace")
    by_thread: dict[str, Counter[str]] = defaultdict(Counter)
    for thread, call, mapped in re.findall(r"^(\d+) +(\w+)\((?:.*(\.seg)>)?", told, re.M):
        if call in CHANGES | READS or (call == "mmap" and mapped):
            by_thread[thread][call] += 1
    most: Counter[str] = Counter()
    for made in by_thread.values():
        most |= made
    return most


def hit(work: Path, point: Point) -> Outcome:
    """Let the fault happen; judge what is left."""
    for _ in range(TRIES):
        outcome = _hit(work, point)
        if outcome.fired or outcome.wrong:
            break
    return outcome


def _hit(work: Path, point: Point) -> Outcome:
    with _Workload(work) as workload:
        workload.play(lambda pid: _tracer(point, pid, workload.store, str(workload.trace)))
        told = workload.trace.read_text(errors="replace")
        mark = {"kill": "killed by SIGKILL", SHORT: "(SHORT)"}.get(point.fault, "(INJECTED)")
        wrong = workload.wrong(killed=point.fault == "kill")
        return Outcome(mark in told, workload.ended, workload.told.done, wrong or workload.judged())


def _tracer(point: Point, pid: int, store: Path, trace: str) -> list[str]:
    if point.fault == SHORT:
        place = [str(pid), point.call, str(point.index), trace]
        return [sys.executable, "-S", "-E", short_writes.__file__, *place]
    what = "signal=KILL" if point.fault == "kill" else f"error={point.fault}"
    inject = f"inject={point.call}:{what}:when={point.index}"
    command = ["strace", "-f", "-q", "-o", trace, "-p", str(pid), "-e", f"trace={point.call}", "-e", inject]
    if point.call == "mmap":
        command += [word for n in range(SEGMENTS_MAX) for word in ("-P", str(filenames.segment(store, n)))]
    return command


class _Workload:
    """A process that plays the script in a directory of its own, and what it told."""

    def __init__(self, work: Path) -> None:
        self._directory = work / "point"
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self.trace = self._directory / "trace"
        self.store = self._directory / "store"
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(HANG_S)
        self._process = fresh(script.play_over, theirs, self.store)
        theirs.close()
        self.told = script.Told()
        assert self._ours.recv(1) == script.READY

    def __enter__(self) -> _Workload:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join(HANG_S)
        self._ours.close()
        shutil.rmtree(self._directory)

    def play(self, tracer: Callable[[int], list[str]]) -> None:
        """Let it play to its end under a tracer, given its command for a process ID."""
        command = tracer(self._process.pid or 0)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            try:
                _until_traced(self._process)
                self._ours.send(b"!")
                for line in _lines(self._ours):
                    self.told.hear(line)
            finally:
                self._process.join(1 if self.told.wrong else HANG_S)
                self._process.kill()
                _, complaint = running.communicate(timeout=HANG_S)
        assert running.returncode in (0, -9, 137), complaint

    @property
    def ended(self) -> str:
        """Return how it ended: "killed", the name of a typed error, "end"."""
        return self.told.error or ("end" if self.told.end else "killed")

    def wrong(self, *, killed: bool) -> str | None:
        """Return what was wrong with it while it ran."""
        status = self._process.exitcode
        if self.told.wrong is None and status != 0 and not (killed and status == -9):
            return f"ended with status {status}, {self.ended}"
        return self.told.wrong

    def judged(self) -> str | None:
        """Return what a fresh process finds wrong."""
        ours, theirs = socket.socketpair()
        ours.settimeout(HANG_S)
        process = fresh(script.judge_over, theirs, self.store, self.told)
        theirs.close()
        with ours:
            told = "".join(_lines(ours))
        process.join(0 if told == HANGS else HANG_S)
        process.kill()
        return None if told == script.RIGHT else told or f"the check ended with status {process.exitcode}"


def _lines(ours: socket.socket) -> Iterator[str]:
    """Yield what the other side sends, line by line, until it is gone; "wrong" where it says nothing more."""
    try:
        yield from (line.rstrip("\n") for line in ours.makefile(encoding="utf-8"))
    except TimeoutError:
        yield HANGS
    except ConnectionResetError:  # killed before it took in what it was sent
        pass


def _until_traced(process: BaseProcess) -> None:
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + HANG_S
    while "TracerPid:\t0\n" in status.read_text():
        assert time.monotonic() < deadline, "the tracer does not attach"
        time.sleep(0.001)
