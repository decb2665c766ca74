"""Reading a stretch of the hash order from several replicas, page by page, merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH
from kvmeta_server.cluster.anti_entropy import merged
from kvmeta_server.cluster.seams import PeerError, Peers

PAGE_ROWS = 131_072

Rows = NDArray[np.uint64]


async def quorum_rows(
    peers: Peers, dataset: str, epoch: int, owners: Sequence[int], need: int, first: int, last: int
) -> AsyncIterator[tuple[Rows, int]]:
    """Yield the rows of a stretch as `need` of its `owners` hold them, and up to which high half."""
    turn = 0
    while first <= last:
        calls = (peers.rows(slot, dataset, epoch, first, last, PAGE_ROWS) for slot in owners[:need])
        try:
            pages = await asyncio.gather(*calls)
        except PeerError:
            turn += 1
            if turn >= len(owners):
                raise
            owners = [*owners[1:], owners[0]]  # one of them may have damaged pages
            continue
        until = min(page.until for page in pages)
        yield merged([page.rows[page.rows[:, HIGH] <= np.uint64(until)] for page in pages]), until
        first = until + 1
