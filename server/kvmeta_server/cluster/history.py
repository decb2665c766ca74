"""Histories: which documents one came from, as the digests of its last ancestors. Pure.

Whoever replaces a document by the next one adds the digest of the one that it replaces, which covers the
digests before. So two documents of one number are told apart, and so are the continuations of each: a store
that was set back to an older state and went on from there has another history.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import xxhash

LENGTH = 1000
"""Ancestors that a document names."""
_BYTES = 8


@dataclass(frozen=True)
class History:
    """The digests (8 bytes each, little-endian) of up to LENGTH ancestors, the newest last."""

    digests: bytes = b""

    @staticmethod
    def of(text: str) -> History:
        """Return the history in base64; ValueError where it is none."""
        digests = base64.b64decode(text, validate=True)
        if len(digests) % _BYTES or len(digests) > LENGTH * _BYTES:
            raise ValueError(f"a history of {len(digests)} bytes")
        return History(digests)

    def text(self) -> str:
        """Return it in base64."""
        return base64.b64encode(self.digests).decode()

    def with_next(self, digest: int) -> History:
        """Return it with one ancestor more."""
        return History((self.digests + digest.to_bytes(_BYTES, "little"))[-LENGTH * _BYTES :])

    def with_gap(self, count: int) -> History:
        """Return it with so many ancestors more that are nobody's."""
        return History((self.digests + bytes(_BYTES * min(count, LENGTH)))[-LENGTH * _BYTES :])

    def has(self, back: int, digest: int) -> bool:
        """Return whether the ancestor so many changes back has a digest; True where it is named no more."""
        start = len(self.digests) - back * _BYTES
        if start < 0:
            return True
        return self.digests[start : start + _BYTES] == digest.to_bytes(_BYTES, "little")


NO_HISTORY = History()


def digest_of(document: bytes) -> int:
    """Return a document's digest."""
    return xxhash.xxh3_64_intdigest(document)
