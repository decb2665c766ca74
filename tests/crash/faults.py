"""Faults of files: what bad devices, cuts and misdirected writes leave, as values to list and count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SECTOR_BYTES = 512
PAGE_BYTES = 4096
KINDS = (
    "flipped",  # one bit of a byte
    "zeroed",  # bytes set to 0
    "cut",  # the file ends early
    "lengthened",  # the file has a byte more
    "removed",
    "swapped",  # two blocks, of one file or of two files of one kind
    "borrowed",  # a block comes from the file of another store, or from an older state of it
    "exchanged",  # the whole file does
)


@dataclass(frozen=True)
class Fault:
    """A fault of `file`, a path below the directory it is done to. `kind` is one of KINDS.

    `at` and `size` are the bytes it is about (cut: `at` bytes are left; flipped: `bit` of byte `at`).
    `other` and `other_at` are where a block comes from: below the directory for a swap, else below `donors`.
    """

    kind: str
    file: str
    at: int = 0
    size: int = 1
    bit: int = 0
    other: str = ""
    other_at: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files that it changes."""
        return (self.file, self.other) if self.kind == "swapped" and self.other != self.file else (self.file,)

    def __str__(self) -> str:
        of = f" with {self.other_at} of {self.other}" if self.other else ""
        return f"{self.file}: {self.kind}, byte {self.at}, {self.size} bytes, bit {self.bit}{of}"

    def do(self, directory: Path, donors: Path | None = None) -> None:
        """Do it to the files below `directory`."""
        path = directory / self.file
        if self.kind == "removed":
            path.unlink()
            return
        data = bytearray(path.read_bytes())
        end = self.at + self.size
        if self.kind == "flipped":
            data[self.at] ^= 1 << self.bit
        elif self.kind == "zeroed":
            data[self.at : end] = bytes(len(data[self.at : end]))
        elif self.kind == "cut":
            del data[self.at :]
        elif self.kind == "lengthened":
            data.append(0)
        elif self.kind == "swapped":
            self._swap(data, directory / self.other)
        else:
            assert donors is not None
            given = (donors / self.other).read_bytes()
            block = slice(self.at, end) if self.kind == "borrowed" else slice(None)
            data[block] = given[self.other_at :][: self.size]
        path.write_bytes(data)

    def _swap(self, data: bytearray, path: Path) -> None:
        other = data if self.other == self.file else bytearray(path.read_bytes())
        here, there = slice(self.at, self.at + self.size), slice(self.other_at, self.other_at + self.size)
        data[here], other[there] = other[there], data[here]
        if other is not data:
            path.write_bytes(other)


def bytewise(file: str, data: bytes, stride: int = 1, bits: int = 1) -> Iterator[Fault]:
    """Yield the faults of each (or `stride`-th) byte: `bits` of it flipped, it zeroed, the file cut there."""
    for at in range(0, len(data), stride):
        for bit in range(bits):
            yield Fault("flipped", file, at, bit=(at * 5 + at // 8 + bit) % 8)
        if data[at]:
            yield Fault("zeroed", file, at)
        yield Fault("cut", file, at)


def whole(file: str, data: bytes) -> Iterator[Fault]:
    """Yield the faults of the file as a whole, and runs of it zeroed."""
    yield Fault("removed", file)
    yield Fault("lengthened", file)
    for size in (SECTOR_BYTES, PAGE_BYTES):
        for at in range(0, len(data), size):
            if any(data[at : at + size]):
                yield Fault("zeroed", file, at, size)


def swaps(file: str, data: bytes, siblings: Mapping[str, bytes]) -> Iterator[Fault]:
    """Yield every two blocks swapped that differ: within the file, and with each of its siblings."""
    for size in (SECTOR_BYTES, PAGE_BYTES):
        starts = range(0, len(data) - size + 1, size)
        for one in starts:
            for two in starts[one // size + 1 :]:
                if data[one : one + size] != data[two : two + size]:
                    yield Fault("swapped", file, one, size, other=file, other_at=two)
        for sibling, theirs in siblings.items():
            for one in starts:
                others = range(0, len(theirs) - size + 1, size) if size == PAGE_BYTES else (one,)
                for two in others:
                    if data[one : one + size] != theirs[two : two + size] and two + size <= len(theirs):
                        yield Fault("swapped", file, one, size, other=sibling, other_at=two)


def borrowings(file: str, data: bytes, donors: Mapping[str, bytes]) -> Iterator[Fault]:
    """Yield the blocks, and the whole files, of `donors` in the place of the file's own where they differ."""
    for donor, theirs in donors.items():
        for size in (SECTOR_BYTES, PAGE_BYTES):
            for at in range(0, len(data), size):
                block = theirs[at : at + size]
                if block and block != data[at : at + size]:
                    yield Fault("borrowed", file, at, size, other=donor, other_at=at)
        if theirs != data:
            yield Fault("exchanged", file, size=len(theirs), other=donor)
