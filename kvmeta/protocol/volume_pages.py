"""Volumes by number and by URI, a page at a time: small in memory, quick to send, few writes for many.

Page p has the volumes of numbers 256 p + 1 to 256 p + 256 that there are, in order. Its bytes are what a
store keeps and what the nodes of a cluster share: their size (u4, little-endian), then an LZ4 block of a
`ListVolumesResponse` of kvmeta.proto. So pages one after the other are the answer to who lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import lz4.block
import numpy as np
import xxhash
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from kvmeta.errors import CorruptionError
from kvmeta.protocol import records
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import Volume, VolumeRow

VOLUMES = 256
"""Of a page."""
_FRESH_MIN = 4096
_PAGES_DECODED = 64
_SIZE_BYTES = 4
_PAGE_BYTES_MAX = 8 << 20


def page_of(number: int) -> int:
    """Return the page of a volume."""
    return (number - 1) // VOLUMES


class VolumePages:
    """The volumes of a store. It is changed by whole pages: `pages_with` makes them, `take` takes them over.

    Some 50 bytes a volume, for URIs of usual length. Threads may ask while one changes it.
    """

    def __init__(self, pages: Mapping[int, bytes] | None = None) -> None:
        self._pages: dict[int, bytes] = {}
        self._count = 0
        self._uris = _Uris()
        for number in sorted(pages or {}):
            self.take(number, (pages or {})[number])

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Volume]:
        """Yield the volumes by number."""
        for page in sorted(self._pages):
            for message in _parsed(self._pages[page]):
                yield records.volume(message)

    @property
    def pages(self) -> Mapping[int, bytes]:
        """Return the pages by number."""
        return self._pages

    def get(self, number: int) -> VolumeRow | None:
        """Return a volume; None where there is none of a number."""
        raw = self._pages.get(page_of(number))
        return None if raw is None else _decoded(raw).get(number)

    def of_uri(self, uri: str) -> VolumeRow | None:
        """Return the volume that has a URI; None where none has."""
        for number in self._uris.candidates(uri):
            row = self.get(number)
            if row is not None and row.uri == uri:
                return row
        return None

    def pages_with(self, rows: Iterable[VolumeRow]) -> dict[int, bytes]:
        """Return the pages that change where these rows are set; nothing is changed here."""
        changed: dict[int, dict[int, VolumeRow]] = {}
        for row in rows:
            page = page_of(row.number)
            if page not in changed:
                raw = self._pages.get(page)
                changed[page] = {} if raw is None else dict(_decoded(raw))
            changed[page][row.number] = row
        return {page: _encoded(held.values()) for page, held in changed.items()}

    def take(self, page: int, raw: bytes) -> None:
        """Take a page over; CorruptionError where it is none."""
        now = {message.number: message.uri for message in _read(raw, page)}
        before: dict[int, str] = {}
        if page in self._pages:
            before = {message.number: message.uri for message in _parsed(self._pages[page])}
        self._uris.add({number: uri for number, uri in now.items() if before.get(number) != uri})
        self._pages[page] = raw
        self._count += len(now) - len(before)

    def messages(self, after: int, bytes_max: int) -> tuple[bytes, bool]:
        """Return volumes above a number as the bytes of a ListVolumesResponse, and whether they are all.

        Whole pages behind the first, up to `bytes_max`: at least one.
        """
        pages = sorted(self._pages)
        start = int(np.searchsorted(pages, page_of(after + 1)))
        out: list[bytes] = []
        size = 0
        for page in pages[start:]:
            raw = _plain(self._pages[page])
            if page == page_of(after + 1) and after % VOLUMES:
                raw = _messages(row for row in _decoded(self._pages[page]).values() if row.number > after)
            if size and size + len(raw) > bytes_max:
                return b"".join(out), False
            out.append(raw)
            size += len(raw)
        return b"".join(out), True


class _Uris:
    """Which numbers may have a URI: sorted hashes beside numbers, and what came since. It forgets none."""

    def __init__(self) -> None:
        self._hashes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._numbers: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._fresh: dict[int, tuple[int, ...]] = {}

    def add(self, uris: Mapping[int, str]) -> None:
        fresh = self._fresh
        for number, uri in uris.items():
            digest = _hash(uri)
            fresh[digest] = (*fresh[digest], number) if digest in fresh else (number,)
        if len(self._fresh) > max(_FRESH_MIN, len(self._hashes) // 4):
            self._settle()

    def candidates(self, uri: str) -> list[int]:
        digest = _hash(uri)
        out = list(self._fresh.get(digest, ()))
        hashes, numbers = self._hashes, self._numbers
        at = int(np.searchsorted(hashes, np.uint64(digest)))
        while at < len(hashes) and int(hashes[at]) == digest:
            out.append(int(numbers[at]))
            at += 1
        return out

    def _settle(self) -> None:
        fresh = [(digest, number) for digest, numbers in self._fresh.items() for number in numbers]
        hashes = np.concatenate([self._hashes, np.array([digest for digest, _ in fresh], np.uint64)])
        numbers = np.concatenate([self._numbers, np.array([number for _, number in fresh], np.uint32)])
        order = np.argsort(hashes, kind="stable")
        # Whoever asks meanwhile finds a number twice rather than not at all.
        numbers, hashes = numbers[order], hashes[order]
        self._numbers, self._hashes = numbers, hashes
        self._fresh = {}


def _hash(uri: str) -> int:
    return xxhash.xxh3_64_intdigest(uri.encode("utf-8", "surrogatepass"))


def _encoded(rows: Iterable[VolumeRow]) -> bytes:
    return bytes(lz4.block.compress(_messages(sorted(rows, key=lambda row: row.number))))


def _messages(rows: Iterable[VolumeRow]) -> bytes:
    return pb.ListVolumesResponse(volumes=[records.row_message(row) for row in rows]).SerializeToString()


def _plain(raw: bytes) -> bytes:
    if int.from_bytes(raw[:_SIZE_BYTES], "little") > _PAGE_BYTES_MAX:
        raise ValueError("a page of volumes says that it is larger than any is")
    return bytes(lz4.block.decompress(raw))


@lru_cache(maxsize=_PAGES_DECODED)
def _decoded(raw: bytes) -> Mapping[int, VolumeRow]:
    return {message.number: records.row(message) for message in _parsed(raw)}


def _parsed(raw: bytes) -> Sequence[pb.Volume]:
    return pb.ListVolumesResponse.FromString(_plain(raw)).volumes


def _read(raw: bytes, page: int) -> Sequence[pb.Volume]:
    """Return the volumes of a page that came from elsewhere."""
    try:
        volumes = _parsed(raw)
    except (ValueError, DecodeError, lz4.block.LZ4BlockError) as error:
        raise CorruptionError(f"not a page of volumes: {error!r}") from None
    if not volumes or any(page_of(volume.number) != page for volume in volumes):
        raise CorruptionError(f"page {page} of volumes has none, or others than its own")
    return volumes
