"""The coordinator: writes to W of R, reads from R - W + 1, and what becomes of each ID.

    write   stamp ─ all owners (and targets, while a partition moves) ─ W of each ─ acknowledged
              │ something newer is held: stamp again   │ too few: a hint for who failed, the IDs are told
    read    enough readers ─ the largest version ─ where they differ, W get it before the answer
    decide  insert and relocate: at the first live owner, one batch of a dataset at a time

Any node coordinates. A replica refuses what was planned on an older map of a partition; so does the
coordinator itself at the acknowledgement. Nothing here knows gRPC, files or the time: see seams.py.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Outcome
from kvmeta.engine.kernels.layout import HIGH, LOW, ROW_WORDS, VERSION, WORD3
from kvmeta.engine.kernels.merge import ACCEPTED, REFUSED, STALE
from kvmeta.protocol.codes import EXISTS, TOOK_EFFECT, UNACKNOWLEDGED
from kvmeta.version import MOVES_MAX, TOMBSTONE, HybridClock
from kvmeta_server.cluster.cluster_map import COPYING, ClusterMap
from kvmeta_server.cluster.placement import NOBODY
from kvmeta_server.cluster.preference import Preference
from kvmeta_server.cluster.replica import FAILED, FENCED, Fetched
from kvmeta_server.cluster.seams import Events, Hints, Maps, PeerError, Peers

ANSWERED, UNAVAILABLE = 0, 3
"""A read's states: 0, FAILED (damaged at every replica asked), UNAVAILABLE (too few answered)."""
TRIES = 7
"""How often a batch's open IDs are tried before they are told to have failed."""
FIRST_PAUSE_S = 0.05
MAP_WAIT_S = 1.0

Rows = NDArray[np.uint64]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]


class Read(NamedTuple):
    """What a quorum holds: states u1[n] and rows u8[n, 6] (version 0: nothing; tombstones are told)."""

    states: NDArray[np.uint8]
    rows: Rows
    reason: str


class Written(NamedTuple):
    """What became of a write: which IDs (bool[n]) are acknowledged, and why the others are not."""

    acknowledged: Mask
    reason: str


class _Tally:
    """The answers to rows spread over their owners and targets; `found`: a read found them at one."""

    def __init__(self, cluster_map: ClusterMap, partitions: NDArray[np.int64], *, found: bool) -> None:
        self.found = found
        owners, targets = cluster_map.write_quorums
        self.need_owners, self.need_targets = owners[partitions], targets[partitions]
        self.owners = np.zeros(len(partitions), np.int64)
        self.targets = np.zeros(len(partitions), np.int64)
        self.newer_owners = np.zeros(len(partitions), np.int64)
        self.newer_targets = np.zeros(len(partitions), np.int64)
        self.stale = np.zeros(len(partitions), np.bool_)
        self.fenced = np.zeros(len(partitions), np.bool_)
        self.newest = 0
        self.reason = ""

    @property
    def enough(self) -> Mask:
        enough: Mask = (self.owners >= self.need_owners) & (self.targets >= self.need_targets)
        return enough

    @property
    def settled(self) -> Mask:
        """Return which rows, or something newer in their stead, enough owners and targets hold."""
        owners, targets = self.owners + self.newer_owners, self.targets + self.newer_targets
        settled: Mask = (owners >= self.need_owners) & (targets >= self.need_targets)
        return settled


class _Unsettled:
    """Which answers of a read a move could lose.

    While a partition is copied, W of its targets must have what its owners answer, as they must have a write.
    """

    def __init__(self, cluster_map: ClusterMap, partitions: NDArray[np.int64]) -> None:
        self._copying = cluster_map.phase[partitions] == COPYING
        self._any = bool(self._copying.any())
        if self._any:
            self._targets = cluster_map.targets[partitions]
            self._need = cluster_map.write_quorums[1][partitions]
            self._held = np.zeros(len(partitions), np.int64)

    def note(self, slot: int, at: NDArray[np.int64], newer: Mask, same: Mask) -> None:
        """Note that a node holds newer versions than the others asked so far, or the same."""
        if self._any:
            is_target = (self._targets[at] == slot).any(axis=1)
            self._held[at] = np.where(newer, is_target, self._held[at] + (same & is_target))

    def of(self, versions: Words) -> Mask:
        """Return which of the versions read are not known to be held by enough targets."""
        lost: Mask = self._copying
        return lost & (versions != 0) & (self._held < self._need) if self._any else lost


class Coordinator:
    """Coordinates for one node, `slot`."""

    def __init__(
        self,
        slot: int,
        maps: Maps,
        peers: Peers,
        clock: HybridClock,
        hints: Hints,
        *,
        expired: Callable[[str], int] = lambda _: 0,
        log: Events | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.slot = slot
        self._maps = maps
        self._peers = peers
        self._clock = clock
        self._hints = hints
        self.expired = expired
        """The version below which entries of a dataset have expired."""
        self.repairs_reads = True
        """Off only in simulations, where what else repairs replicas must do without it."""
        self._log = log
        self._sleep = sleep
        self._deciding: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._preference: Preference | None = None
        self._behind: set[asyncio.Task[None]] = set()  # answers nobody waits for, but for their hints

    # Writes

    async def write(self, dataset: str, rows: Rows, *, delete: bool) -> Written:
        """Put or delete rows u8[n, 6] (distinct IDs; versions are set here)."""
        flag = TOMBSTONE if delete else 0
        done = np.zeros(len(rows), np.bool_)
        reason = ""
        for turn in range(TRIES):
            open_ = np.flatnonzero(~done)
            part = rows[open_]  # a copy: late answers to an earlier try still read theirs
            part[:, VERSION] = self._clock.stamp() | flag
            acknowledged, tally, epoch = await self._attempt(dataset, part)
            done[open_] = acknowledged
            if done.all():
                break
            reason = tally.reason or "owners hold something newer again and again"
            await self._before_next(turn, epoch, tally.fenced, tally.stale)
        if not done.all() and self._log is not None:
            self._log.warning("not acknowledged", dataset=dataset, ids=int((~done).sum()), reason=reason)
        return Written(done, reason)

    async def repair(self, dataset: str, rows: Rows, *, found: bool = False) -> Mask:
        """Bring rows with versions to W of their owners; return where W hold them or something newer.

        Where an owner refuses rows for a promise, somebody has them or nobody needs to; not so of live rows
        that a read `found`, and answers: they are refused only where something newer was agreed on.
        """
        _, tally, epoch = await self._attempt(dataset, rows, found=found)
        return tally.settled & ~self._moved_on(rows, epoch)

    async def _attempt(self, dataset: str, rows: Rows, *, found: bool = False) -> tuple[Mask, _Tally, int]:
        """Spread rows with versions; return which are acknowledged under the map as it is by then."""
        cluster_map = self._maps.current
        partitions = cluster_map.partition_of(rows[:, HIGH])
        tally = _Tally(cluster_map, partitions, found=found)
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
        tally: _Tally,
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
        for slot in _slots(owners, targets):
            is_owner, is_target = (owners == slot).any(axis=1), (targets == slot).any(axis=1)
            to = np.flatnonzero(is_owner | is_target)
            part = rows if len(to) == len(rows) else rows[to]
            task = asyncio.ensure_future(
                self._send(tally, slot, dataset, cluster_map.epoch, part, to, is_owner[to], is_target[to])
            )
            waiting.add(task)
        while waiting and not tally.enough.all():
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)

    async def _send(
        self,
        tally: _Tally,
        slot: int,
        dataset: str,
        epoch: int,
        rows: Rows,
        to: NDArray[np.int64],
        is_owner: Mask,
        is_target: Mask,
    ) -> None:
        try:
            outcomes, versions = await self._peers.apply(slot, dataset, epoch, rows, found=tally.found)
        except PeerError as error:
            tally.reason = str(error)
            self._hints.add(slot, dataset, rows)
            return
        held = outcomes == ACCEPTED
        tally.owners[to] += held & is_owner
        tally.targets[to] += held & is_target
        stale = (outcomes == STALE) | (outcomes == REFUSED)
        if stale.any():
            tally.stale[to] |= stale
            newer = stale
            if tally.found:  # a tombstone that all agreed on is refused where it is gone already
                gone = rows[:, VERSION] & np.uint64(TOMBSTONE) != 0
                newer = (outcomes == STALE) | (stale & gone)
            tally.newer_owners[to] += newer & is_owner
            tally.newer_targets[to] += newer & is_target
            tally.newest = max(tally.newest, int(versions.max()))
        fenced = outcomes == FENCED
        if fenced.any():
            tally.fenced[to] |= fenced
            tally.reason = tally.reason or f"node {slot} works under another map"

    async def _before_next(self, turn: int, epoch: int, fenced: Mask | bool, at_once: Mask | bool) -> None:
        """Wait before the next try, if there is one: for a newer map, or twice as long as the last time."""
        if turn + 1 == TRIES:
            return
        if np.any(fenced):
            await self._maps.newer_than(epoch, MAP_WAIT_S)
        elif not np.any(at_once):
            await self._sleep(FIRST_PAUSE_S * 2**turn)

    # Reads

    async def read(self, dataset: str, mixed: Words, *, fast: bool = False) -> Read:
        """Return what a quorum holds of mixed IDs u8[n, 2]; with `fast`, of what one replica holds just that.

        Where replicas differ, W of them have the answer before it is given.
        """
        n = len(mixed)
        states, rows = np.full(n, UNAVAILABLE, np.uint8), np.zeros((n, ROW_WORDS), np.uint64)
        rows[:, : LOW + 1] = mixed
        reason = ""
        if fast:
            await self._read_one(dataset, states, rows)
        for turn in range(TRIES):
            open_ = np.flatnonzero(states == UNAVAILABLE)
            if not len(open_):
                break
            part = rows if len(open_) == n else rows[open_]
            got, fenced, reason, epoch = await self._read_quorum(dataset, part)
            states[open_] = got
            if part is not rows:
                rows[open_] = part
            await self._before_next(turn, epoch, fenced, bool((got != UNAVAILABLE).all()))
        return Read(states, rows, reason)

    async def _read_one(self, dataset: str, states: NDArray[np.uint8], rows: Rows) -> None:
        """Answer what the nearest replica holds; leave the others UNAVAILABLE."""
        cluster_map = self._maps.current
        nearest = self.preference(cluster_map).readers[cluster_map.partition_of(rows[:, HIGH]), 0]
        calls = []
        for slot in _slots(nearest):
            to = np.flatnonzero(nearest == slot)
            mixed = np.ascontiguousarray(rows[to, : LOW + 1])
            calls.append((to, self._fetch(slot, dataset, cluster_map.epoch, mixed, versions_only=False)))
        for (to, _), got in zip(calls, await _all([call for _, call in calls]), strict=True):
            if isinstance(got, Fetched):
                assert got.locations is not None
                live = (got.states == ANSWERED) & (got.versions != 0)
                live &= got.versions & np.uint64(TOMBSTONE) == 0
                hit = to[live]
                states[hit] = ANSWERED
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
        damaged, fenced = np.zeros(n, np.bool_), False
        unsettled = _Unsettled(cluster_map, partitions)
        reason = ""
        rows[:, VERSION:] = 0
        asked = 0
        while asked < ranks:
            until = min(ranks, int(need.max())) if not asked else asked + 1
            calls = []
            for rank in range(asked, until):
                wanted = (answers < need) if asked else (rank < need)
                for slot in _slots(order[wanted, rank]):
                    to = np.flatnonzero(wanted & (order[:, rank] == slot))
                    mixed = np.ascontiguousarray(rows[to, : LOW + 1])
                    only = rank > 0
                    calls.append(
                        (slot, to, self._fetch(slot, dataset, cluster_map.epoch, mixed, versions_only=only))
                    )
            asked = until
            for (slot, to, _), got in zip(calls, await _all([call for *_, call in calls]), strict=True):
                if isinstance(got, PeerError):
                    reason = str(got)
                    continue
                fenced |= bool((got.states == FENCED).any())
                damaged[to[got.states == FAILED]] = True
                good = got.states == ANSWERED
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
        if len(differs) and self.repairs_reads:
            enough[differs] = await self.repair(dataset, np.ascontiguousarray(rows[differs]), found=True)
        states = np.where(enough, np.uint8(ANSWERED), np.uint8(UNAVAILABLE))
        states[~enough & damaged] = FAILED
        rows[~enough, VERSION:] = 0
        return states, fenced, reason, cluster_map.epoch

    async def _complete(
        self, dataset: str, cluster_map: ClusterMap, rows: Rows, source: NDArray[np.uint16], enough: Mask
    ) -> None:
        """Fetch the locations of rows of which only the version came so far."""
        for slot in _slots(source[enough]):
            to = np.flatnonzero(enough & (source == slot))
            mixed = np.ascontiguousarray(rows[to, : LOW + 1])
            try:
                got = await self._fetch(slot, dataset, cluster_map.epoch, mixed, versions_only=False)
            except PeerError:
                enough[to] = False
                continue
            assert got.locations is not None
            same = (got.states == ANSWERED) & (got.versions >= rows[to, VERSION])
            rows[to[same], VERSION] = got.versions[same]
            rows[to[same], WORD3:] = got.locations[same]
            enough[to[~same]] = False

    async def _fetch(
        self, slot: int, dataset: str, epoch: int, mixed: Words, *, versions_only: bool
    ) -> Fetched:
        return await self._peers.fetch(slot, dataset, epoch, mixed, versions_only=versions_only)

    def preference(self, cluster_map: ClusterMap) -> Preference:
        """Return whom to ask first under a map, as it looks now."""
        unlikely = frozenset(slot for slot in cluster_map.holders if not self._peers.likely(slot))
        known = self._preference
        if known is None or known.map is not cluster_map or known.unlikely != unlikely:
            known = self._preference = Preference(cluster_map, self.slot, unlikely)
        return known

    # Insert and relocate

    async def decide(self, dataset: str, operation: str, rows: Rows) -> tuple[NDArray[np.uint8], Rows, str]:
        """Insert or relocate rows u8[n, 6]; return outcomes u1[n], the rows held then and a reason.

        A relocate's versions are those seen. Never sent twice after an answer was lost: then UNACKNOWLEDGED.
        """
        n = len(rows)
        outcomes, held = np.full(n, FENCED_OUTCOME, np.uint8), np.zeros_like(rows)
        reason = ""
        for _ in range(TRIES):
            open_ = np.flatnonzero(outcomes == FENCED_OUTCOME)
            if not len(open_):
                break
            cluster_map, reason = self._maps.current, ""
            first = self.preference(cluster_map).deciders[cluster_map.partition_of(rows[open_, HIGH])]
            calls = []
            for slot in _slots(first):
                to = open_[first == slot]
                part = np.ascontiguousarray(rows[to])
                calls.append((to, self._peers.decide(slot, dataset, cluster_map.epoch, operation, part)))
            for (to, _), got in zip(calls, await _all([call for _, call in calls]), strict=True):
                if isinstance(got, PeerError):
                    reason = str(got)
                    if got.begun:
                        outcomes[to] = UNACKNOWLEDGED
                else:
                    outcomes[to], held[to] = got
            if (outcomes == FENCED_OUTCOME).any() and not reason:
                await self._maps.newer_than(cluster_map.epoch, MAP_WAIT_S)
        outcomes[outcomes == FENCED_OUTCOME] = UNACKNOWLEDGED
        return outcomes, held, reason

    async def decide_here(
        self, dataset: str, epoch: int, operation: str, rows: Rows
    ) -> tuple[NDArray[np.uint8], Rows]:
        """Decide as the first live owner: one batch of a dataset at a time, from the read to the W-th ack."""
        async with self._deciding[dataset]:
            cluster_map = self._maps.current
            partitions = cluster_map.partition_of(rows[:, HIGH])
            if (cluster_map.changed[partitions] > np.uint64(epoch)).any():
                return np.full(len(rows), FENCED_OUTCOME, np.uint8), np.zeros_like(rows)
            if operation == "insert":
                return await self._insert(dataset, rows)
            return await self._relocate(dataset, rows)

    async def _insert(self, dataset: str, rows: Rows) -> tuple[NDArray[np.uint8], Rows]:
        outcomes, held = np.full(len(rows), UNACKNOWLEDGED, np.uint8), np.zeros_like(rows)
        open_ = np.arange(len(rows))
        ours: list[int] = []  # our stamps: what an attempt left behind is no other's entry
        for turn in range(TRIES):
            got = await self.read(dataset, np.ascontiguousarray(rows[open_, : LOW + 1]))
            held[open_] = got.rows
            absent = self.absent(dataset, got.rows)
            answered = got.states == ANSWERED
            took_effect = np.isin(got.rows[:, VERSION], np.array(ours, np.uint64))
            outcomes[open_[got.states == FAILED]] = Outcome.FAILED
            outcomes[open_[answered & ~absent]] = EXISTS
            left = answered & ~absent & took_effect
            kept = await self._kept(dataset, got.rows, left)
            outcomes[open_[left]] = np.where(kept, TOOK_EFFECT, UNACKNOWLEDGED)
            open_ = open_[answered & absent]
            if not len(open_):
                break
            part = np.ascontiguousarray(rows[open_])
            ours.append(self._clock.stamp())
            part[:, VERSION] = ours[-1]
            acknowledged, tally, epoch = await self._attempt(dataset, part)
            outcomes[open_[acknowledged]] = TOOK_EFFECT
            held[open_[acknowledged]] = part[acknowledged]
            open_ = open_[~acknowledged]
            if not len(open_):
                break
            # Then decide again: a put may have come between.
            await self._before_next(turn, epoch, tally.fenced, tally.stale)
        return outcomes, held

    async def _relocate(self, dataset: str, rows: Rows) -> tuple[NDArray[np.uint8], Rows]:
        outcomes, held = np.full(len(rows), UNACKNOWLEDGED, np.uint8), np.zeros_like(rows)
        open_ = np.arange(len(rows))
        moved = rows.copy()
        moved[:, VERSION] += np.uint64(1)
        for turn in range(TRIES):
            got = await self.read(dataset, np.ascontiguousarray(rows[open_, : LOW + 1]))
            held[open_] = got.rows
            outcomes[open_] = self._judge(dataset, got, rows[open_])
            if turn:  # what an attempt of ours left behind
                left = (got.states == ANSWERED) & (got.rows == moved[open_]).all(axis=1)
                kept = await self._kept(dataset, got.rows, left)
                outcomes[open_[left]] = np.where(kept, Outcome.RELOCATED, UNACKNOWLEDGED)
            open_ = open_[(outcomes[open_] == UNACKNOWLEDGED) & (got.states == ANSWERED)]
            if not len(open_):
                break
            acknowledged, tally, epoch = await self._attempt(dataset, np.ascontiguousarray(moved[open_]))
            outcomes[open_[acknowledged]] = Outcome.RELOCATED  # what is newer somewhere came after it
            open_ = open_[~acknowledged]
            if not len(open_):
                break
            # Then judge again: one replica may have taken it.
            await self._before_next(turn, epoch, tally.fenced, tally.stale)
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
            kept[open_], tally, epoch = await self._attempt(dataset, np.ascontiguousarray(ours[open_]))
            if kept.all() or (tally.stale & ~kept[open_]).any():  # the stale ones nobody will take any more
                break
            await self._before_next(turn, epoch, tally.fenced, at_once=False)
        return kept

    def _judge(self, dataset: str, got: Read, rows: Rows) -> NDArray[np.uint8]:
        """Return why relocates do not take effect, UNACKNOWLEDGED where they may."""
        outcomes = np.full(len(rows), UNACKNOWLEDGED, np.uint8)
        versions, answered = got.rows[:, VERSION], got.states == ANSWERED
        outcomes[got.states == FAILED] = Outcome.FAILED
        outcomes[answered & (versions & np.uint64(MOVES_MAX) == np.uint64(MOVES_MAX))] = Outcome.EXHAUSTED
        outcomes[answered & (versions != rows[:, VERSION])] = Outcome.CHANGED
        outcomes[answered & self.absent(dataset, got.rows)] = Outcome.ABSENT
        return outcomes

    def absent(self, dataset: str, rows: Rows) -> Mask:
        """Return bool[n]: whether rows as read are no live entries."""
        versions = rows[:, VERSION]
        gone: Mask = (versions == 0) | (versions & np.uint64(TOMBSTONE) != 0)
        return gone | (versions < np.uint64(self.expired(dataset)))


FENCED_OUTCOME = 8
"""An outcome between nodes: not begun, for the map is another by now."""
_FEW = 1024  # slots; a count of them all walks over every number that a slot may have


def _slots(*columns: NDArray[np.uint16]) -> list[int]:
    """Return the nodes named, in order."""
    named: set[int] = set()
    for column in columns:
        few = column.size < _FEW
        named.update((column if few else np.flatnonzero(np.bincount(column.reshape(-1)))).ravel().tolist())
    return sorted(named - {NOBODY})


async def _all(calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
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
