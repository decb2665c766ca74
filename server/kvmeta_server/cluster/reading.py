"""Reading: what R - W + 1 replicas hold of IDs, the largest version of each.

enough readers ─ the largest version ─ where they differ, W owners get it before the answer
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION, WORD3
from kvmeta.protocol.codes import State
from kvmeta.version import TOMBSTONE
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.preference import Preference
from kvmeta_server.cluster.rows import Bound, Fetched, Mask, Rows, Words, shares, slots_in
from kvmeta_server.cluster.seams import Maps, PeerError, Peers
from kvmeta_server.cluster.tally import Unsettled
from kvmeta_server.cluster.writing import TRIES, Writer


class Read(NamedTuple):
    """What a quorum holds: states u1[n] and rows u8[n, 6] (version 0: nothing; tombstones are told).

    A state is ANSWERED, FAILED (damaged at every replica asked) or UNAVAILABLE (too few answered).
    """

    states: NDArray[np.uint8]
    rows: Rows
    reason: str


class Reader:
    """Reads for the node `slot`. `brings`: whether what replicas differ in is brought to W of them."""

    def __init__(self, slot: int, maps: Maps, peers: Peers, writer: Writer, *, brings: bool) -> None:
        self._slot = slot
        self._maps = maps
        self._peers = peers
        self._writer = writer
        self._brings = brings
        self._preference: Preference | None = None

    async def read(self, dataset: str, mixed: Words, *, fast: bool = False) -> Read:
        """Return what a quorum holds of mixed IDs u8[n, 2]; with `fast`, of what one replica holds just that.

        Where replicas differ, W of them have the answer before it is given.
        """
        n = len(mixed)
        states, rows = np.full(n, State.UNAVAILABLE, np.uint8), np.zeros((n, ROW_WORDS), np.uint64)
        rows[:, : LOW + 1] = mixed
        reason = ""
        if fast:
            await self._read_one(dataset, states, rows)
        for turn in range(TRIES):
            open_ = np.flatnonzero(states == State.UNAVAILABLE)
            if not len(open_):
                break
            part = rows if len(open_) == n else rows[open_]
            got, fenced, reason, epoch = await self._read_quorum(dataset, part)
            states[open_] = got
            if part is not rows:
                rows[open_] = part
            if not fenced and not self._may_improve(rows[states == State.UNAVAILABLE, HIGH]):
                break
            await self._writer.before_next(turn, epoch, fenced, bool((got != State.UNAVAILABLE).all()))
        return Read(states, rows, reason)

    def _may_improve(self, highs: Words) -> bool:
        """Return whether another try may answer more: enough owners are there, or were until lately."""
        cluster_map = self._maps.current
        partitions = cluster_map.partition_of(highs)
        readers = cluster_map.readers[partitions]
        gone = [slot for slot in slots_in(readers) if self._peers.long_gone(slot)]
        there = ((readers != NOBODY) & ~np.isin(readers, gone)).sum(axis=1)
        return not len(highs) or bool((there >= cluster_map.read_quorum[partitions]).any())

    async def _read_one(self, dataset: str, states: NDArray[np.uint8], rows: Rows) -> None:
        """Answer what the nearest replica holds; leave the others UNAVAILABLE."""
        cluster_map = self._maps.current
        nearest = self.preference(cluster_map).readers[cluster_map.partition_of(rows[:, HIGH]), 0]
        calls = []
        for slot, to in shares(nearest):
            mixed = np.ascontiguousarray(rows[to, : LOW + 1])
            calls.append(
                (to, self._peers.fetch(slot, dataset, cluster_map.epoch, mixed, versions_only=False))
            )
        for (to, _), got in zip(calls, await answers_of([call for _, call in calls]), strict=True):
            if isinstance(got, Fetched):
                assert got.locations is not None
                live = (got.states == State.ANSWERED) & (got.versions != 0)
                live &= got.versions & np.uint64(TOMBSTONE) == 0
                hit = to[live]
                states[hit] = State.ANSWERED
                rows[hit, VERSION] = got.versions[live]
                rows[hit, WORD3:] = got.locations[live]

    async def _read_quorum(self, dataset: str, rows: Rows) -> tuple[NDArray[np.uint8], bool, str, int]:
        """Fill in rows; return their states, whether some were fenced, a reason and the epoch asked under."""
        cluster_map = self._maps.current
        partitions = cluster_map.partition_of(rows[:, HIGH])
        order = self.preference(cluster_map).readers[partitions]
        need = cluster_map.read_quorum[partitions]
        n, ranks = order.shape
        answers = np.zeros(n, np.int64)
        lowest = np.full(n, np.iinfo(np.uint64).max, np.uint64)
        source = np.full(n, NOBODY, np.uint16)  # who has the largest version, and nobody its location yet
        damaged, silent, fenced = np.zeros(n, np.bool_), np.zeros(n, np.bool_), False
        unsettled = Unsettled(cluster_map, partitions)
        reason = ""
        rows[:, VERSION:] = 0
        asked = 0
        while asked < ranks:
            until = min(ranks, int(need.max())) if not asked else asked + 1
            calls = []
            for rank in range(asked, until):
                wanted = (answers < need) if asked else (rank < need)
                for slot, to in shares(order[:, rank], wanted):
                    mixed = np.ascontiguousarray(rows[to, : LOW + 1])
                    only = rank > 0
                    calls.append(
                        (
                            slot,
                            to,
                            self._peers.fetch(slot, dataset, cluster_map.epoch, mixed, versions_only=only),
                        )
                    )
            asked = until
            for (slot, to, _), got in zip(calls, await answers_of([call for *_, call in calls]), strict=True):
                if isinstance(got, PeerError):
                    reason = str(got)
                    silent[to] = True
                    continue
                fenced |= bool((got.states == State.FENCED).any())
                damaged[to[got.states == State.FAILED]] = True
                good = got.states == State.ANSWERED
                at, versions = to[good], got.versions[good]
                answers[at] += 1
                lowest[at] = np.minimum(lowest[at], versions)
                newer = versions > rows[at, VERSION]
                unsettled.note(slot, at, newer, versions == rows[at, VERSION])
                rows[at[newer], VERSION] = versions[newer]
                if got.locations is None:
                    source[at[newer]] = slot
                else:
                    rows[at[newer], WORD3:] = got.locations[good][newer]
                    source[at[newer]] = NOBODY
            if (answers >= need).all():
                break
        enough = answers >= need
        await self._complete(dataset, cluster_map, rows, source, enough)
        differs = np.flatnonzero(enough & ((lowest < rows[:, VERSION]) | unsettled.of(rows[:, VERSION])))
        if len(differs) and self._brings:
            enough[differs] = await self._writer.bring(
                dataset, np.ascontiguousarray(rows[differs]), Bound.AGREED
            )
        states = np.where(enough, np.uint8(State.ANSWERED), np.uint8(State.UNAVAILABLE))
        states[~enough & damaged & ~silent] = State.FAILED  # who is silent may not be damaged there
        rows[~enough, VERSION:] = 0
        return states, fenced, reason, cluster_map.epoch

    async def _complete(
        self, dataset: str, cluster_map: ClusterMap, rows: Rows, source: NDArray[np.uint16], enough: Mask
    ) -> None:
        """Fetch the locations of rows of which only the version came so far."""
        for slot, to in shares(source, enough):
            mixed = np.ascontiguousarray(rows[to, : LOW + 1])
            try:
                got = await self._peers.fetch(slot, dataset, cluster_map.epoch, mixed, versions_only=False)
            except PeerError:
                enough[to] = False
                continue
            assert got.locations is not None
            same = (got.states == State.ANSWERED) & (got.versions >= rows[to, VERSION])
            rows[to[same], VERSION] = got.versions[same]
            rows[to[same], WORD3:] = got.locations[same]
            enough[to[~same]] = False

    def preference(self, cluster_map: ClusterMap) -> Preference:
        """Return whom to ask first under a map, as it looks now."""
        unlikely = frozenset(slot for slot in cluster_map.holders if not self._peers.likely(slot))
        known = self._preference
        if known is None or known.map is not cluster_map or known.unlikely != unlikely:
            known = self._preference = Preference(cluster_map, self._slot, unlikely)
        return known


async def answers_of(calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return the answers, or the PeerErrors, of calls under way at once."""
    if len(calls) == 1:
        try:
            return [await calls[0]]
        except PeerError as error:
            return [error]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, PeerError):
            raise answer
    return answers
