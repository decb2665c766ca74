"""Reading a stretch of the hash order from several replicas, page by page, merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from kvmeta_server.cluster.rows import Rows, aligned, merged
from kvmeta_server.cluster.seams import PeerError, Peers

PAGE_ROWS = 131_072


async def quorum_page(
    peers: Peers, dataset: str, epoch: int, slots: Sequence[int], first: int, last: int, page_rows: int
) -> tuple[Rows, int]:
    """Return the next rows of a stretch as all of `slots` together hold them, and up to which high half."""
    calls = (peers.rows(slot, dataset, epoch, first, last, page_rows) for slot in slots)
    parts, until = aligned(await asyncio.gather(*calls))
    return merged(parts), until


async def quorum_rows(
    peers: Peers, dataset: str, epoch: int, owners: Sequence[int], need: int, first: int, last: int
) -> AsyncIterator[tuple[Rows, int]]:
    """Yield the rows of a stretch as `need` of its `owners` hold them, and up to which high half."""
    turn = 0
    while first <= last:
        try:
            rows, until = await quorum_page(peers, dataset, epoch, owners[:need], first, last, PAGE_ROWS)
        except PeerError:
            turn += 1
            if turn >= len(owners):
                raise
            owners = [*owners[1:], owners[0]]  # one of them may have damaged pages
            continue
        yield rows, until
        first = until + 1
