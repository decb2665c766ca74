"""The mark: what was last acknowledged, kept outside the log, for the log cannot tell that its tail is gone.

`MARK` is two slots of 512 bytes, each within a sector and with its own checksum, written in turn after every
group's fsync and every manifest change, not fsynced itself (an acknowledgement must not pay for two). Opening
refuses a log that is behind its mark.

Closing a store fsyncs the mark with `clean` set in both slots and writes `SEAL`: size and XXH3-64 of every
file of the log. While a mark is clean, each byte of the log must be the one that was closed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from kvmeta.engine import filenames
from kvmeta.engine.filenames import sync_directory
from kvmeta.errors import MALFORMED, CorruptionError, os_errors

MAGIC = b"KVMMARK\x01"
SLOT_BYTES = 512

SLOT = np.dtype(
    [
        ("magic", "S8"),
        ("store", "V16"),
        ("turn", "<u8"),
        ("clean", "<u8"),
        ("sequence", "<u8"),
        ("chain", "<u8"),
        ("generation", "<u8"),
        ("digest", "<u8"),
        ("seal", "<u8"),
        ("reserved", "V424"),
        ("checksum", "<u8"),
    ]
)
assert SLOT.itemsize == SLOT_BYTES


@dataclass(frozen=True)
class Mark:
    """Last acknowledged WAL position and manifest state; `seal` is the checksum of SEAL, when clean."""

    sequence: int = 0
    chain: int = 0
    generation: int = 0
    digest: int = 0
    clean: bool = False
    seal: int = 0


class MarkFile:
    """The open mark of a store that is being written."""

    def __init__(self, store: Path, store_id: bytes, turn: int) -> None:
        self._path = filenames.mark(store)
        self._store_id = store_id
        self._turn = turn
        with os_errors("opening", self._path):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, mark: Mark) -> None:
        """Write `mark` to the slot whose turn it is."""
        self._turn += 1
        with os_errors("writing", self._path):
            slot = _encode(mark, self._store_id, self._turn)
            filenames.write_at(self._fd, slot, self._turn % 2 * SLOT_BYTES)

    def write_durably(self, mark: Mark) -> None:
        """Write `mark` to both slots, one after the other, and fsync each: a power cut tears one at most."""
        self._turn += 1
        slot = _encode(mark, self._store_id, self._turn)
        for at in (self._turn % 2, (self._turn + 1) % 2):
            with os_errors("writing", self._path):
                filenames.write_at(self._fd, slot, at * SLOT_BYTES)
                os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read(store: Path, store_id: bytes) -> tuple[Mark, int]:
    """Return the store's mark and its turn; CorruptionError where it cannot be trusted."""
    path = filenames.mark(store)
    with os_errors("reading", path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptionError(f"{path} is missing; the store cannot be proved whole", path) from None
    slots = [_decode(data[i * SLOT_BYTES : (i + 1) * SLOT_BYTES], store_id) for i in range(2)]
    valid = [slot for slot in slots if slot is not None]
    if not valid or len(data) != 2 * SLOT_BYTES:
        raise CorruptionError(f"{path} is damaged; the store cannot be proved whole", path)
    mark, turn = max(valid, key=lambda slot: slot[1])
    if mark.clean and len(valid) < 2:
        raise CorruptionError(
            f"{path} is damaged in one of its two slots although the store was closed", path
        )
    return mark, turn


def seal(store: Path) -> int:
    """Write SEAL for the closed log; return its checksum."""
    path = filenames.seal(store)
    files = {file.name: list(_fingerprint(file, sync=True)) for file in _log_files(store)}
    text = json.dumps({"files": files}, sort_keys=True, indent=1).encode()
    with os_errors("writing", path), open(path, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(filenames.log(store))
    sync_directory(store)
    return int(xxhash.xxh3_64_intdigest(text))


def check_seal(store: Path, mark: Mark) -> None:
    """Raise CorruptionError naming the first file of a closed log that is not what was closed."""
    path = filenames.seal(store)
    with os_errors("reading", path):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise CorruptionError(f"{path} is missing although the store was closed", path) from None
    if xxhash.xxh3_64_intdigest(text) != mark.seal:
        raise CorruptionError(f"{path} is damaged", path)
    try:
        expected = dict(json.loads(text)["files"])
    except MALFORMED:
        raise CorruptionError(f"{path} is damaged", path) from None
    found = {file.name: file for file in _log_files(store)}
    for name in sorted(expected.keys() | found.keys()):
        where = filenames.log(store) / name
        if name not in found:
            raise CorruptionError(f"{where} is missing; it was there when the store was closed", where)
        if name not in expected:
            raise CorruptionError(f"{where} is not a file of the closed store", where)
        if list(_fingerprint(found[name])) != expected[name]:
            raise CorruptionError(f"{where} changed since the store was closed", where)


def _log_files(store: Path) -> list[Path]:
    """Return the files of the log that hold something."""
    log = filenames.log(store)
    with os_errors("listing", log):
        if not log.is_dir():
            raise CorruptionError(f"{log} is missing; it was there when the store was closed", log)
        return sorted(file for file in log.iterdir() if not filenames.is_scratch(file))


def _fingerprint(file: Path, *, sync: bool = False) -> tuple[int, str]:
    digest, size = xxhash.xxh3_64(), 0
    with os_errors("reading", file), _opened(file) as stream:
        if sync:  # RocksDB does not fsync every file it writes, but the seal vouches for each
            os.fsync(stream.fileno())
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _opened(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except FileNotFoundError:
        raise CorruptionError(f"{file} went missing while the log was read", file) from None


def _encode(mark: Mark, store_id: bytes, turn: int) -> bytes:
    slot = np.zeros((), SLOT)
    slot["magic"], slot["store"], slot["turn"] = MAGIC, np.void(store_id), turn
    slot["clean"], slot["sequence"], slot["chain"] = mark.clean, mark.sequence, mark.chain
    slot["generation"], slot["digest"], slot["seal"] = mark.generation, mark.digest, mark.seal
    slot["checksum"] = xxhash.xxh3_64_intdigest(slot.tobytes()[:-8])
    return slot.tobytes()


def _decode(data: bytes, store_id: bytes) -> tuple[Mark, int] | None:
    if len(data) != SLOT_BYTES:
        return None
    slot = np.frombuffer(data, SLOT)[0]
    if slot["magic"] != MAGIC or bytes(slot["store"]) != store_id:
        return None
    if int(slot["checksum"]) != xxhash.xxh3_64_intdigest(data[:-8]):
        return None
    mark = Mark(
        sequence=int(slot["sequence"]),
        chain=int(slot["chain"]),
        generation=int(slot["generation"]),
        digest=int(slot["digest"]),
        clean=bool(slot["clean"]),
        seal=int(slot["seal"]),
    )
    return mark, int(slot["turn"])
