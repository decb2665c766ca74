"""System calls that fail, write short or never return: a sample of `make syscalls`, each proved to fire."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import short_writes
from tests.system.disks import needs, tmpfs
from tests.system.failing_calls import SHORT, Point, hit, points

pytestmark = [pytest.mark.system, needs("strace", "mount", "umount")]

SEED = 20_240_402
SAMPLES = {"kill": 80, "EIO": 100, "ENOSPC": 60, SHORT: 40, "EMFILE": 12, "ENOMEM": 8}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tmpfs(tmp_path_factory.mktemp("calls") / "disk", "256m") as path:
        yield path


@pytest.fixture(scope="module")
def every_point(disk: Path) -> list[Point]:
    return points(disk)


@pytest.mark.parametrize("fault", SAMPLES)
def test_a_failing_call_raises_a_typed_error_and_loses_nothing_acknowledged(
    disk: Path, every_point: list[Point], fault: str
) -> None:
    all_of_it = [point for point in every_point if point.fault == fault]
    for point in random.Random(SEED).sample(all_of_it, SAMPLES[fault]):
        outcome = hit(disk, point)
        assert outcome.wrong is None, (point, outcome)
        assert outcome.fired, (point, outcome)


def test_the_workload_has_enough_calls(every_point: list[Point]) -> None:
    assert len(every_point) >= 3000
    calls = {point.call for point in every_point}
    assert calls >= {"write", "pwrite64", "fsync", "fdatasync", "openat", "rename", "unlink", "ftruncate"}


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
sys.stdin.readline()
written = [os.write(fd, bytes(100)) for _ in range(3)]
print(*written, os.fstat(fd).st_size)
"""


def test_a_short_write_really_writes_half(disk: Path) -> None:
    trace = disk / "trace"
    command = [sys.executable, "-c", WRITER, str(disk / "short")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        while not (disk / "short").exists():
            assert writer.poll() is None
        tracer = subprocess.Popen(
            [sys.executable, short_writes.__file__, str(writer.pid), "write", "2", str(trace)]
        )
        while "TracerPid:\t0\n" in Path(f"/proc/{writer.pid}/status").read_text():
            assert tracer.poll() is None
        told, _ = writer.communicate("go\n")
        assert tracer.wait() == 0
    assert told.split() == ["100", "50", "100", "250"]
    assert "(SHORT)" in trace.read_text()
