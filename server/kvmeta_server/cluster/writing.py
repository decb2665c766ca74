"""Writing: rows to W of their owners, and to W of their targets while a partition moves.

stamp ─ all owners and targets at once ─ W of each ─ acknowledged
│ something newer is held: stamp again   │ too few: a hint for who failed, the IDs are told
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, VERSION
from kvmeta.protocol.codes import Outcome
from kvmeta.version import TOMBSTONE, HybridClock
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.rows import Bound, Mask, Rows, slots_in
from kvmeta_server.cluster.seams import Events, Hints, Maps, PeerError, Peers
from kvmeta_server.cluster.tally import Tally

TRIES = 7
"""How often a batch's open IDs are tried before they are told to have failed."""
FIRST_PAUSE_S = 0.05
MAP_WAIT_S = 1.0


class Written(NamedTuple):
    """What became of a write: which IDs (bool[n]) are acknowledged, and why the others are not."""

    acknowledged: Mask
    reason: str


class Writer:
    """Writes for one node, to the replicas of all."""

    def __init__(
        self,
        maps: Maps,
        peers: Peers,
        clock: HybridClock,
        hints: Hints,
        log: Events | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._maps = maps
        self._peers = peers
        self._clock = clock
        self._hints = hints
        self._log = log
        self._sleep = sleep
        self._behind: set[asyncio.Task[None]] = set()  # answers nobody waits for, but for their hints

    def stamp(self) -> int:
        """Return a version above all that this node has seen."""
        return self._clock.stamp()

    async def write(self, dataset: str, rows: Rows, *, delete: bool) -> Written:
        """Put or delete rows u8[n, 6] (distinct IDs; versions are set here)."""
        flag = TOMBSTONE if delete else 0
        done = np.zeros(len(rows), np.bool_)
        reason = ""
        for turn in range(TRIES):
            open_ = np.flatnonzero(~done)
            part = rows[open_]  # a copy: late answers to an earlier try still read theirs
            part[:, VERSION] = self._clock.stamp() | flag
            acknowledged, tally, epoch = await self.attempt(dataset, part)
            done[open_] = acknowledged
            if done.all():
                break
            reason = tally.reason or "owners hold something newer again and again"
            await self.before_next(turn, epoch, tally.fenced, tally.stale)
        if not done.all() and self._log is not None:
            self._log.warning("not acknowledged", dataset=dataset, ids=int((~done).sum()), reason=reason)
        return Written(done, reason)

    async def bring(self, dataset: str, rows: Rows, bound: Bound = Bound.PROMISED) -> Mask:
        """Bring rows with versions to W of their owners; return where W hold them or something newer.

        Where an owner refuses rows for a promise, somebody has them or nobody needs to. Not so of live rows
        that a read found and is about to answer (`Bound.AGREED`): an owner that refuses these has something
        newer, on which all agreed.
        """
        _, tally, epoch = await self.attempt(dataset, rows, bound)
        return tally.settled & ~self._moved_on(rows, epoch)

    async def attempt(
        self, dataset: str, rows: Rows, bound: Bound = Bound.PROMISED
    ) -> tuple[Mask, Tally, int]:
        """Spread rows with versions; return which are acknowledged under the map as it is by then."""
        cluster_map = self._maps.current
        partitions = cluster_map.partition_of(rows[:, HIGH])
        tally = Tally(cluster_map, partitions, bound)
        await self._spread(tally, dataset, cluster_map, partitions, rows)
        moved_on = self._moved_on(rows, cluster_map.epoch)
        tally.fenced |= moved_on
        # Above what lies further ahead nobody could stamp anything that replicas take: one node's wrong clock
        # would keep all that meet its rows from writing.
        if tally.newest and self._clock.ahead_ms(tally.newest) <= cluster_map.max_skew_ms:
            self._clock.observe(tally.newest)
        return tally.enough & ~moved_on, tally, cluster_map.epoch

    def _moved_on(self, rows: Rows, epoch: int) -> Mask:
        """Return of which rows the partition has changed since an epoch, as far as is known here."""
        now = self._maps.current
        moved_on: Mask = now.changed[now.partition_of(rows[:, HIGH])] > np.uint64(epoch)
        return moved_on

    async def _spread(
        self,
        tally: Tally,
        dataset: str,
        cluster_map: ClusterMap,
        partitions: NDArray[np.int64],
        rows: Rows,
    ) -> None:
        """Send rows to all their owners and targets; return as soon as enough of them have answered."""
        owners = cluster_map.owners[partitions]
        moving = cluster_map.moving[partitions]
        targets = np.where(moving[:, None], cluster_map.targets[partitions], NOBODY)
        waiting: set[asyncio.Task[None]] = set()
        for slot in slots_in(owners, targets):
            is_owner, is_target = (owners == slot).any(axis=1), (targets == slot).any(axis=1)
            to = np.flatnonzero(is_owner | is_target)
            part = rows if len(to) == len(rows) else rows[to]
            task = asyncio.ensure_future(
                self._send(tally, slot, dataset, cluster_map.epoch, part, to, is_owner[to], is_target[to])
            )
            waiting.add(task)
        try:
            while waiting and not tally.enough.all():
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also where the caller gave up: who fails from now on gets a hint all the same
            for task in waiting:
                self._behind.add(task)
                task.add_done_callback(self._behind.discard)

    async def _send(
        self,
        tally: Tally,
        slot: int,
        dataset: str,
        epoch: int,
        rows: Rows,
        to: NDArray[np.int64],
        is_owner: Mask,
        is_target: Mask,
    ) -> None:
        try:
            outcomes, versions = await self._peers.apply(slot, dataset, epoch, rows, tally.bound)
        except PeerError as error:
            tally.reason = str(error)
            tally.may_be_held[to] = True
            self._hints.add(slot, dataset, rows)
            return
        held = outcomes == Outcome.TOOK_EFFECT
        tally.owners[to] += held & is_owner
        tally.targets[to] += held & is_target
        stale = (outcomes == Outcome.STALE) | (outcomes == Outcome.REFUSED)
        if stale.any():
            tally.stale[to] |= stale
            newer = stale
            if tally.bound is Bound.AGREED:
                # A tombstone that all agreed on is refused where it is gone already.
                gone = rows[:, VERSION] & np.uint64(TOMBSTONE) != 0
                newer = (outcomes == Outcome.STALE) | (stale & gone)
            tally.newer_owners[to] += newer & is_owner
            tally.newer_targets[to] += newer & is_target
            tally.newest = max(tally.newest, int(versions.max()))
        fenced = outcomes == Outcome.FENCED
        tally.may_be_held[to] |= ~(stale | fenced)
        if fenced.any():
            tally.fenced[to] |= fenced
            tally.reason = tally.reason or f"node {slot} works under another map"

    async def before_next(self, turn: int, epoch: int, fenced: Mask | bool, at_once: Mask | bool) -> None:
        """Wait before the next try, if there is one: for a newer map, or twice as long as the last time."""
        if turn + 1 == TRIES:
            return
        if np.any(fenced):
            await self._maps.newer_than(epoch, MAP_WAIT_S)
        elif not np.any(at_once):
            await self._sleep(FIRST_PAUSE_S * 2**turn)
