"""The coordinator: writes to W of R, reads from R - W + 1, decisions at the first live owner.

    writing.py    stamp, send to all owners, count
    reading.py    ask enough replicas, and bring them what they differ in
    deciding.py   insert and relocate: read, judge, write

Any node coordinates. A replica refuses what was planned on an older map of a partition; so does the
coordinator itself at the acknowledgement. Nothing here knows gRPC, files or the time: see seams.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvmeta.version import HybridClock
from kvmeta_server.cluster.deciding import Decider
from kvmeta_server.cluster.reading import Reader
from kvmeta_server.cluster.seams import Events, Hints, Maps, Peers
from kvmeta_server.cluster.writing import Writer


class Coordinator:
    """Coordinates for one node, `slot`.

    `expired` tells of a dataset below which version entries have expired. `brings_reads` is off only in
    simulations, where what else brings replicas together must do without it.
    """

    def __init__(
        self,
        slot: int,
        maps: Maps,
        peers: Peers,
        clock: HybridClock,
        hints: Hints,
        *,
        expired: Callable[[str], int] = lambda _: 0,
        brings_reads: bool = True,
        log: Events | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.slot = slot
        self.expired = expired
        self.writer = Writer(maps, peers, clock, hints, log, sleep)
        self.reader = Reader(slot, maps, peers, self.writer, brings=brings_reads)
        self.decider = Decider(maps, peers, self.writer, self.reader, expired)
        self.write, self.bring = self.writer.write, self.writer.bring
        self.read, self.preference = self.reader.read, self.reader.preference
        self.decide, self.decide_here = self.decider.decide, self.decider.decide_here
        self.absent = self.decider.absent
