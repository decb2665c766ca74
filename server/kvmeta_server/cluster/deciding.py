"""Deciding: inserts and relocates, which depend on what is held. Each at the first live owner of its ID.

One batch of a dataset is decided at a time, from the read to the W-th acknowledgement, so that two of them
never decide on the same state.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import HIGH, LOW, VERSION
from kvmeta.protocol.codes import Outcome, State
from kvmeta.version import MOVES_MAX, TOMBSTONE
from kvmeta_server.cluster.reading import Read, Reader, answers_of
from kvmeta_server.cluster.rows import Mask, Rows, shares
from kvmeta_server.cluster.seams import Maps, PeerError, Peers
from kvmeta_server.cluster.writing import MAP_WAIT_S, TRIES, Writer


class Decider:
    """Decides for one node. `expired` tells of a dataset below which version entries have expired."""

    def __init__(
        self, maps: Maps, peers: Peers, writer: Writer, reader: Reader, expired: Callable[[str], int]
    ) -> None:
        self._maps = maps
        self._peers = peers
        self._writer = writer
        self._reader = reader
        self._expired = expired
        self._deciding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def decide(self, dataset: str, operation: str, rows: Rows) -> tuple[NDArray[np.uint8], Rows, str]:
        """Insert or relocate rows u8[n, 6]; return outcomes u1[n], the rows held then and a reason.

        A relocate's versions are those seen. Never sent twice after an answer was lost: then UNACKNOWLEDGED.
        What has expired, this node's clock says, wherever it is decided: a lookup here says the same.
        """
        n, expired = len(rows), self._expired(dataset)
        outcomes, held = np.full(n, Outcome.FENCED, np.uint8), np.zeros_like(rows)
        reason = ""
        for _ in range(TRIES):
            open_ = np.flatnonzero(outcomes == Outcome.FENCED)
            if not len(open_):
                break
            cluster_map, reason = self._maps.current, ""
            first = self._reader.preference(cluster_map).deciders[cluster_map.partition_of(rows[open_, HIGH])]
            calls = []
            for slot, share in shares(first):
                to = open_[share]
                part = np.ascontiguousarray(rows[to])
                calls.append(
                    (to, self._peers.decide(slot, dataset, cluster_map.epoch, operation, part, expired))
                )
            for (to, _), got in zip(calls, await answers_of([call for _, call in calls]), strict=True):
                if isinstance(got, PeerError):
                    reason = str(got)
                    if got.begun:
                        outcomes[to] = Outcome.UNACKNOWLEDGED
                else:
                    outcomes[to], held[to] = got
            if (outcomes == Outcome.FENCED).any() and not reason:
                await self._maps.newer_than(cluster_map.epoch, MAP_WAIT_S)
        outcomes[outcomes == Outcome.FENCED] = Outcome.UNACKNOWLEDGED
        return outcomes, held, reason

    async def decide_here(
        self, dataset: str, epoch: int, operation: str, rows: Rows, expired: int
    ) -> tuple[NDArray[np.uint8], Rows]:
        """Decide as the first live owner: one batch of a dataset at a time, from the read to the W-th ack.

        `expired`: below which version entries have, as whoever was asked has it.
        """
        async with self._deciding[dataset]:
            cluster_map = self._maps.current
            partitions = cluster_map.partition_of(rows[:, HIGH])
            if (cluster_map.changed[partitions] > np.uint64(epoch)).any():
                return np.full(len(rows), Outcome.FENCED, np.uint8), np.zeros_like(rows)
            if operation == "insert":
                return await self._insert(dataset, rows, expired)
            return await self._relocate(dataset, rows, expired)

    async def _insert(self, dataset: str, rows: Rows, expired: int) -> tuple[NDArray[np.uint8], Rows]:
        outcomes, held = np.full(len(rows), Outcome.UNACKNOWLEDGED, np.uint8), np.zeros_like(rows)
        open_ = np.arange(len(rows))
        ours: list[int] = []  # our stamps: what an attempt left behind is no other's entry
        may_be_held = np.zeros(len(rows), np.bool_)  # then ours may be seen, or win: nobody refused it
        for turn in range(TRIES):
            got = await self._reader.read(dataset, np.ascontiguousarray(rows[open_, : LOW + 1]))
            absent = _absent(got.rows, expired)
            answered = got.states == State.ANSWERED
            outcomes[open_[got.states == State.FAILED]] = Outcome.FAILED
            outcomes[open_[answered & ~absent & ~may_be_held[open_]]] = Outcome.EXISTS
            if turn:  # what an attempt of ours left behind
                left = answered & ~absent & np.isin(got.rows[:, VERSION], np.array(ours, np.uint64))
                got.rows[left, VERSION] = ours[-1]  # which may be held elsewhere, and would win
                kept = await self._kept(dataset, got.rows, left)
                outcomes[open_[left]] = np.where(kept, Outcome.TOOK_EFFECT, Outcome.UNACKNOWLEDGED)
            held[open_] = got.rows
            open_ = open_[answered & absent]
            if not len(open_):
                break
            part = np.ascontiguousarray(rows[open_])
            ours.append(self._writer.stamp())
            part[:, VERSION] = ours[-1]
            acknowledged, tally, epoch = await self._writer.attempt(dataset, part)
            outcomes[open_[acknowledged]] = Outcome.TOOK_EFFECT
            held[open_[acknowledged]] = part[acknowledged]
            may_be_held[open_] |= tally.may_be_held
            open_ = open_[~acknowledged]
            if not len(open_):
                break
            # Then decide again: a put may have come between.
            await self._writer.before_next(turn, epoch, tally.fenced, tally.stale)
        return outcomes, held

    async def _relocate(self, dataset: str, rows: Rows, expired: int) -> tuple[NDArray[np.uint8], Rows]:
        outcomes, held = np.full(len(rows), Outcome.UNACKNOWLEDGED, np.uint8), np.zeros_like(rows)
        open_ = np.arange(len(rows))
        moved = rows.copy()
        moved[:, VERSION] += np.uint64(1)
        may_be_held = np.zeros(len(rows), np.bool_)  # as in an insert
        for turn in range(TRIES):
            got = await self._reader.read(dataset, np.ascontiguousarray(rows[open_, : LOW + 1]))
            held[open_] = got.rows
            outcomes[open_] = self._judge(got, rows[open_], expired)
            answered = got.states == State.ANSWERED
            may_move = answered & (outcomes[open_] == Outcome.UNACKNOWLEDGED)
            if turn:  # what an attempt of ours left behind
                outcomes[open_[answered & may_be_held[open_]]] = Outcome.UNACKNOWLEDGED
                left = answered & (got.rows == moved[open_]).all(axis=1)
                kept = await self._kept(dataset, got.rows, left)
                outcomes[open_[left]] = np.where(kept, Outcome.TOOK_EFFECT, Outcome.UNACKNOWLEDGED)
            open_ = open_[may_move]
            if not len(open_):
                break
            acknowledged, tally, epoch = await self._writer.attempt(
                dataset, np.ascontiguousarray(moved[open_])
            )
            outcomes[open_[acknowledged]] = Outcome.TOOK_EFFECT  # what is newer somewhere came after it
            may_be_held[open_] |= tally.may_be_held
            open_ = open_[~acknowledged]
            if not len(open_):
                break
            # Then judge again: one replica may have taken it.
            await self._writer.before_next(turn, epoch, tally.fenced, tally.stale)
        return outcomes, held

    async def _kept(self, dataset: str, rows: Rows, left: Mask) -> Mask:
        """Bring what an attempt of ours left behind to W owners; return which of those `left` they hold now.

        The read that found it may have been of one replica, and what others refuse they do not hold.
        """
        if not left.any():
            return np.zeros(0, np.bool_)
        ours = np.ascontiguousarray(rows[left])
        kept = np.zeros(len(ours), np.bool_)
        for turn in range(TRIES):
            open_ = np.flatnonzero(~kept)
            kept[open_], tally, epoch = await self._writer.attempt(dataset, np.ascontiguousarray(ours[open_]))
            if kept.all() or (tally.stale & ~kept[open_]).any():  # the stale ones nobody will take any more
                break
            await self._writer.before_next(turn, epoch, tally.fenced, at_once=False)
        return kept

    def _judge(self, got: Read, rows: Rows, expired: int) -> NDArray[np.uint8]:
        """Return why relocates do not take effect, UNACKNOWLEDGED where they may."""
        outcomes = np.full(len(rows), Outcome.UNACKNOWLEDGED, np.uint8)
        versions, answered = got.rows[:, VERSION], got.states == State.ANSWERED
        outcomes[got.states == State.FAILED] = Outcome.FAILED
        outcomes[answered & (versions & np.uint64(MOVES_MAX) == np.uint64(MOVES_MAX))] = Outcome.EXHAUSTED
        outcomes[answered & (versions != rows[:, VERSION])] = Outcome.CHANGED
        outcomes[answered & _absent(got.rows, expired)] = Outcome.ABSENT
        return outcomes

    def absent(self, dataset: str, rows: Rows) -> Mask:
        """Return bool[n]: whether rows as read are no live entries, by this node's clock."""
        return _absent(rows, self._expired(dataset))


def _absent(rows: Rows, expired: int) -> Mask:
    versions = rows[:, VERSION]
    gone: Mask = (versions == 0) | (versions & np.uint64(TOMBSTONE) != 0)
    return gone | (versions < np.uint64(expired))
