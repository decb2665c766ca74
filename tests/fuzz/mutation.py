"""Seeded mutations of an input, for runs without a fuzzer: a few changes of the kinds that break decoders."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
_WORDS = (b"null", b"-1", b"[]", b"{}", b"1e400", b'""', b"[" * 2000, b"9" * 5000, b"\xff", b"true")


def mutated(data: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """Return `data` with one to four changes; `corpus` is what it may be spliced with."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_CHANGES)(data, corpus, rng)
    return data


def _flip(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _cut(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    first, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[min(end, first + 64) :] if rng.random() < 0.7 else data[:end]


def _repeat(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    first, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    end = min(end, first + 600)
    return data[:end] + data[first:]


def _number(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    """Put a number of 1, 2, 4 or 8 bytes, at the edge of something, at a place where one may be."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(0, max(1, min(len(data), rng.choice((64, 400, 1 << 20)))))
    value = (rng.choice(_NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def _word(data: bytes, _: Sequence[bytes], rng: random.Random) -> bytes:
    first = rng.randrange(len(data) + 1)
    return data[:first] + rng.choice(_WORDS) + data[first + rng.randrange(8) :]


def _splice(data: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(corpus)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


_CHANGES: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _repeat,
    _number,
    _number,
    _word,
    _splice,
)
