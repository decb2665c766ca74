"""A fuzz target: a decoder, real inputs of it, and what the decoder promises.

It returns a value or raises a KvmetaError, within a second of processor time, and takes at most 64 MiB of
memory more, whatever it is given. `judge` tells how an input breaks that.

Where the bytes carry checksums, `seal` makes those of mutated bytes right again, so that what lies behind
them is reached.
"""

from __future__ import annotations

import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from kvmeta.errors import KvmetaError

HANG_S = 1.0
MEMORY_BYTES_MAX = 64 << 20
FINDINGS = Path(__file__).parent / "findings"
"""Inputs that broke a decoder once, by target: each is replayed for ever."""


@dataclass(frozen=True)
class Target:
    """A decoder under test. `decode` may return anything; `replays` is how many mutations the suite tries."""

    name: str
    seeds: Callable[[], list[bytes]]
    decode: Callable[[bytes], Any]
    seal: Callable[[bytes], bytes] = lambda data: data
    replays: int = 2500


@dataclass(frozen=True)
class Verdict:
    """What a target made of an input: a value (`accepted`), a typed error, or a finding."""

    accepted: bool
    finding: Finding | None = None


@dataclass(frozen=True)
class Finding:
    """How a decoder broke its promise: a name that is the same for the same fault, and the traceback."""

    what: str
    told: str


class HangError(Exception):
    """A decoder has worked for too long."""


def judge(target: Target, data: bytes) -> Verdict:
    """Let the target take `data`."""
    try:
        with _bounded(MEMORY_BYTES_MAX):
            target.decode(data)
    except KvmetaError:
        return Verdict(False)
    except Exception as error:  # noqa: BLE001 - any other is a finding
        return Verdict(False, _finding(error))
    return Verdict(True)


def past_findings(target: Target) -> list[bytes]:
    """Return the inputs that once broke the target."""
    return [file.read_bytes() for file in sorted((FINDINGS / target.name).glob("*"))]


@cache
def scratch() -> Path:
    """Return a directory for what decoders read from files; whoever started the process removes it."""
    return Path(tempfile.mkdtemp())


@contextmanager
def _bounded(memory_bytes: int) -> Iterator[None]:
    """Limit the block's processor time and the process's address space beyond what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGVTALRM, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory_bytes, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def _hang(_: int, __: FrameType | None) -> None:
    raise HangError(f"no answer within {HANG_S:g} s of processor time")


def _finding(error: Exception) -> Finding:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "kvmeta" in frame.filename]
    ours = [frame for frame in frames if "/tests/" not in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "nowhere"
    return Finding(f"{type(error).__name__} in {at}", "".join(traceback.format_exception(error)))
