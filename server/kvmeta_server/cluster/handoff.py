"""Hinted handoff, the other half: what waits for a node is sent once it answers again.

Not to a node that still copies the partition: it has not promised yet what the owners have, and would take,
and bring back, what they deleted and whose tombstones they purged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from kvmeta.engine.kernels.layout import HIGH
from kvmeta.protocol.codes import Outcome
from kvmeta_server.cluster.cluster_map import COPYING
from kvmeta_server.cluster.coordinator import Coordinator
from kvmeta_server.cluster.seams import Events, Hints, Maps, PeerError, Peers


class Handoff:
    """Sends this node's hints."""

    def __init__(
        self,
        hints: Hints,
        maps: Maps,
        peers: Peers,
        coordinator: Coordinator,
        datasets: Callable[[], list[str]],
        log: Events,
        every_s: float,
    ) -> None:
        self._hints = hints
        self._maps = maps
        self._peers = peers
        self._coordinator = coordinator
        self._datasets = datasets
        self._log = log
        self._every_s = every_s
        self._sent: dict[int, int] = {}  # how far into each node's hints

    async def run(self) -> None:
        """Send what can be sent, for ever."""
        while True:
            for slot in list(self._hints.waiting()):
                try:
                    await self._send(slot)
                except PeerError:  # later
                    pass
                except Exception as error:  # noqa: BLE001 - hints of others must not wait for these
                    self._log.fault("hints", error)
            await asyncio.sleep(self._every_s)

    async def _send(self, slot: int) -> None:
        """Send a node what waits for it; what it owns no more goes to who does."""
        gone = slot not in self._maps.current.by_slot
        if not gone and not self._peers.likely(slot):
            return
        end, rows = self._sent.get(slot, 0), 0
        for hint in self._hints.read(slot, end):
            end = hint.end
            if hint.dataset not in self._datasets():
                self._sent[slot] = end
                continue  # dropped since, or damaged
            fenced = np.ones(len(hint.rows), np.bool_)
            cluster_map = self._maps.current
            partitions = cluster_map.partition_of(hint.rows[:, HIGH])
            if not gone:
                if cluster_map.incoming(slot)[partitions].any():
                    return
                outcomes, _ = await self._peers.apply(slot, hint.dataset, cluster_map.epoch, hint.rows)
                fenced = outcomes == Outcome.FENCED
            if fenced.any():
                if (self._maps.current.phase[partitions[fenced]] == COPYING).any():
                    return
                held = await self._coordinator.bring(hint.dataset, np.ascontiguousarray(hint.rows[fenced]))
                if not held.all():
                    return  # their owners do not answer: later
            rows += len(hint.rows)
            self._sent[slot] = end
        if self._hints.done(slot, end):
            self._sent.pop(slot, None)
            self._log.info("hints taken", node=slot, rows=rows)
