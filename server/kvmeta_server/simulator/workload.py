"""Simulated clients: batches of a few IDs through any node; every answer goes into the history."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import LOW, ROW_WORDS, VERSION, WORD3
from kvmeta.protocol.codes import Outcome, State
from kvmeta.transport.failures import CallFailed
from kvmeta_server.cluster.node import Node
from kvmeta_server.simulator.history import Floor, History, Key, Place, Sent
from kvmeta_server.simulator.loop import Process
from kvmeta_server.simulator.network import Network
from kvmeta_server.simulator.watching import sending

Rows = NDArray[np.uint64]
DATASET = "default"
PATIENCE_S = 12.0
BATCH_MAX = 6


class Clients:
    """Some clients, each with one call under way at a time."""

    def __init__(
        self,
        rng: random.Random,
        network: Network,
        history: History,
        nodes: Callable[[], Sequence[str]],
        keys: Rows,
        *,
        reads_settle: bool,
        acknowledged: Callable[[Node, Rows, Sequence[Sent], int], None],
    ) -> None:
        self._rng = rng
        self._network = network
        self._history = history
        self._nodes = nodes
        self._keys = keys
        self._reads_settle = reads_settle
        self._acknowledged = acknowledged
        self._places = 0
        self.process = Process("client")

    async def run(self, pause_s: float) -> None:
        """Do one thing after another, for ever."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / pause_s))
            await self._one()

    async def read_everything(self) -> bool:
        """Read all IDs by quorum; return whether all were answered."""
        rows = _rows_of(self._keys)
        try:
            return await self._read(rows, self._history.begin(_keys_of(rows)))
        except CallFailed:
            return False

    async def _one(self) -> None:
        works: list[Callable[[Rows, dict[Key, Floor]], Awaitable[Any]]] = [
            partial(self._write, delete=False),
            partial(self._write, delete=True),
            self._insert,
            self._relocate,
            self._read,
            self._read_fast,
        ]
        work = self._rng.choices(works, [6, 3, 2, 2, 6, 2])[0]
        picked = self._rng.sample(range(len(self._keys)), self._rng.randint(1, BATCH_MAX))
        rows = _rows_of(self._keys[picked])
        with suppress(CallFailed):  # nobody knows what became of it
            await work(rows, self._history.begin(_keys_of(rows)))

    async def _write(self, rows: Rows, before: dict[Key, Floor], *, delete: bool) -> None:
        sent: dict[Key, Sent] = {}
        if delete:
            for key in before:
                self._history.attempt_delete(key, sent)
        else:
            self._place(rows)

        async def write(node: Node) -> Any:
            written = await sending(node.coordinator.write(DATASET, rows.copy(), delete=delete), sent)
            self._check(node, rows, sent, written.acknowledged)
            return written.acknowledged

        acknowledged = await self._ask(write)
        for key, row, yes in zip(before, rows, acknowledged.tolist(), strict=True):
            if yes and delete:
                self._history.deletion(key, before[key], sent[key].version)
            elif yes:
                self._history.acknowledge(key, before[key], sent[key].version, _place_of(row), "a put")

    async def _insert(self, rows: Rows, before: dict[Key, Floor]) -> None:
        self._place(rows)
        outcomes, held, _ = await self._ask(
            lambda node: node.coordinator.decide(DATASET, "insert", rows.copy())
        )
        for key, ours, row, outcome in zip(before, rows, held, outcomes.tolist(), strict=True):
            version, place = int(row[VERSION]), _place_of(row)
            if outcome == Outcome.TOOK_EFFECT:
                self._history.inserted(key, before[key], version, place)
            elif outcome == Outcome.EXISTS:
                self._history.refuse(key, _place_of(ours), "an insert")
                self._history.answer(
                    key, before[key], version, place, "an insert", settles=self._reads_settle
                )

    async def _relocate(self, rows: Rows, before: dict[Key, Floor]) -> None:
        rows[:, VERSION] = [before[key].version for key in before]
        self._place(rows)
        outcomes, _, _ = await self._ask(
            lambda node: node.coordinator.decide(DATASET, "relocate", rows.copy())
        )
        for key, row, outcome in zip(before, rows, outcomes.tolist(), strict=True):
            if outcome == Outcome.TOOK_EFFECT:
                self._history.relocated(key, before[key], int(row[VERSION]), _place_of(row))
            elif outcome in (Outcome.ABSENT, Outcome.CHANGED, Outcome.EXHAUSTED):
                self._history.refuse(key, _place_of(row), "a relocate")

    async def _read(self, rows: Rows, before: dict[Key, Floor]) -> bool:
        """Read rows' IDs by quorum; return whether all were answered."""
        mixed = np.ascontiguousarray(rows[:, : LOW + 1])
        got = await self._ask(lambda node: node.coordinator.read(DATASET, mixed))
        for key, row, state in zip(before, got.rows, got.states.tolist(), strict=True):
            if state == State.ANSWERED:
                self._history.answer(
                    key, before[key], int(row[VERSION]), _place_of(row), "a read",
                    settles=self._reads_settle,
                )  # fmt: skip
        return bool((got.states == State.ANSWERED).all())

    async def _read_fast(self, rows: Rows, before: dict[Key, Floor]) -> None:
        mixed = np.ascontiguousarray(rows[:, : LOW + 1])
        got = await self._ask(lambda node: node.coordinator.read(DATASET, mixed, fast=True))
        for key, row, state in zip(before, got.rows, got.states.tolist(), strict=True):
            if state == State.ANSWERED:
                self._history.answer_fast(key, before[key], int(row[VERSION]), _place_of(row))

    async def _ask(self, work: Callable[[Node], Awaitable[Any]]) -> Any:
        name = self._rng.choice(self._nodes())
        return await self._network.call(self.process, name, "client", work, PATIENCE_S)

    def _place(self, rows: Rows) -> None:
        """Give rows locations that nobody ever had."""
        for row in rows:
            self._places += 1
            row[WORD3:] = (1, self._places, 0)
            self._history.attempt(row[: LOW + 1].tobytes(), _place_of(row))

    def _check(self, node: Node, rows: Rows, sent: dict[Key, Sent], yes: NDArray[np.bool_]) -> None:
        acknowledged = rows[yes]
        last = max((each.version for each in sent.values()), default=0)
        self._acknowledged(node, acknowledged, [sent[key] for key in _keys_of(acknowledged)], last)


def _rows_of(keys: Rows) -> Rows:
    """Return rows u8[n, 6] of mixed IDs u8[n, 2], with nothing else in them."""
    rows = np.zeros((len(keys), ROW_WORDS), np.uint64)
    rows[:, : LOW + 1] = keys
    return rows


def _keys_of(rows: Rows) -> list[Key]:
    return [row[: LOW + 1].tobytes() for row in rows]


def _place_of(row: Rows) -> Place:
    return int(row[WORD3]), int(row[WORD3 + 1]), int(row[WORD3 + 2])
