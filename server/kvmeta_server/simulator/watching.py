"""What a simulated world puts between a node and its peers, hints and clock. It looks on, and meddles.

WatchedPeers     notes what is sent of each ID; leaves owners out, so that quorums are minimal
WatchedHints     shows the hints of a node once they count as taken; may keep none at all
WatchedClock     shows each stamp
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import LOW, VERSION
from kvmeta.protocol.codes import Outcome
from kvmeta.version import HybridClock
from kvmeta_server.cluster.rows import Applied, Bound
from kvmeta_server.cluster.seams import Hint, Hints, PeerError, Peers
from kvmeta_server.simulator.history import Sent

Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]
_SENT: contextvars.ContextVar[dict[bytes, Sent] | None] = contextvars.ContextVar("sent", default=None)


async def sending(work: Any, sent: dict[bytes, Sent]) -> Any:
    """Return what `work` returns; note in `sent` what is sent of each mixed ID at last."""
    _SENT.set(sent)
    try:
        return await work
    finally:
        _SENT.set(None)


class WatchedPeers:
    """Peers; `leaves_out` says of a write's version whether the owner it goes to never hears of it.

    `took` is shown rows that are no client's write, as a node takes them.
    """

    def __init__(
        self, peers: Peers, leaves_out: Callable[[int], bool], took: Callable[[int, Rows], None]
    ) -> None:
        self._peers = peers
        self._leaves_out = leaves_out
        self._took = took

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peers, name)

    async def apply(
        self, slot: int, dataset: str, epoch: int, rows: Rows, bound: Bound = Bound.PROMISED
    ) -> Applied:
        """Note rows of a client's write, which may leave this owner out; send them."""
        sent = _SENT.get()
        if sent is not None:
            for row in rows:
                sent[row[: LOW + 1].tobytes()] = Sent(int(row[VERSION]), epoch)
            if self._leaves_out(int(rows[0, VERSION])):
                raise PeerError("never heard of")
        applied = await self._peers.apply(slot, dataset, epoch, rows, bound)
        if sent is None:
            self._took(slot, rows[applied.outcomes == Outcome.TOOK_EFFECT])
        return applied


class WatchedHints:
    """Hints; `taken` is shown those of a slot that count as taken. With `keeps` off none are kept."""

    def __init__(self, hints: Hints, taken: Callable[[int, list[Hint]], None], *, keeps: bool) -> None:
        self._hints = hints
        self._taken = taken
        self._keeps = keeps
        self._read: dict[int, list[Hint]] = {}
        self.waiting = hints.waiting

    @property
    def dropped_rows(self) -> int:
        """Return how many rows there was no room for."""
        return self._hints.dropped_rows

    def add(self, slot: int, dataset: str, rows: Rows) -> None:
        """Keep rows for a node."""
        if self._keeps:
            self._hints.add(slot, dataset, rows)

    def read(self, slot: int, start: int = 0) -> Iterator[Hint]:
        """Yield a node's hints."""
        for hint in self._hints.read(slot, start):
            self._read.setdefault(slot, []).append(hint)
            yield hint

    def done(self, slot: int, end: int) -> bool:
        """Remove a node's hints where nothing came behind."""
        all_taken = self._hints.done(slot, end)
        if all_taken:
            self._taken(slot, self._read.pop(slot, []))
        return all_taken


class WatchedClock(HybridClock):
    """A node's clock; `stamped` is shown each stamp."""

    def __init__(self, unix_ms: Callable[[], int], stamped: Callable[[int], None]) -> None:
        super().__init__(unix_ms=unix_ms)
        self._stamped = stamped

    def stamp(self, count: int = 1) -> int:
        """Return a stamp, and show it."""
        stamp = super().stamp(count)
        self._stamped(stamp)
        return stamp
