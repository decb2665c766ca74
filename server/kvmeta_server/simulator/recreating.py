"""A dataset that is dropped and made anew again and again, under one name, while clients write to it.

What is acknowledged into a dataset whose drop has returned before the write began is gone: a violation.
So is what was acknowledged into the one that there is and a quorum read does not return.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.engine.kernels.layout import LOW, ROW_WORDS, VERSION
from kvmeta.errors import KvmetaError, NotFoundError
from kvmeta.protocol.codes import State
from kvmeta.transport.failures import CallFailed
from kvmeta_server.backend import Named
from kvmeta_server.cluster.dataset_table import DatasetTable
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.tables import number_of
from kvmeta_server.simulator.history import Violation
from kvmeta_server.simulator.loop import Process
from kvmeta_server.simulator.network import Network
from kvmeta_server.simulator.watching import sending

NAME = "again"
PATIENCE_S = 12.0
PAUSE_S = 0.3
Rows = NDArray[np.uint64]


class Recreated:
    """The dataset NAME, its clients and what they know. `process` is theirs."""

    def __init__(
        self,
        rng: random.Random,
        network: Network,
        addresses: Callable[[], Sequence[str]],
        keys: Rows,
        tell: Callable[[str, object], None],
    ) -> None:
        self._rng = rng
        self._network = network
        self._addresses = addresses
        self._keys = keys
        self._tell = tell
        self._dropped: set[int] = set()
        self._tried: defaultdict[int, set[bytes]] = defaultdict(set)
        self._floors: defaultdict[int, dict[bytes, int]] = defaultdict(dict)
        self.process = Process("client of datasets")
        self.written = 0

    async def recreate(self, node: Node) -> None:
        """Drop it and make it anew, through a node; where that fails, nothing is known of it."""
        table, refused = _table_of(node), node.membership.refusal
        with suppress(KvmetaError):
            numbers = node.membership.datasets()
            number = numbers[NAME].id if NAME in numbers else 0
            if number:
                await table.drop_dataset(NAME)
                self._dropped.add(number)
            await table.create_dataset(NAME)
            if refused:
                self._tell(node.name, "changed datasets in an etcd that it does not believe")

    async def run(self) -> None:
        """Write and read, one thing after another, for ever."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / PAUSE_S))
            picked = self._rng.sample(range(len(self._keys)), 3)
            rows = np.zeros((3, ROW_WORDS), np.uint64)
            rows[:, : LOW + 1] = self._keys[picked]
            with suppress(CallFailed):
                await (self._write(rows) if self._rng.random() < 0.6 else self._read(rows))

    async def _write(self, rows: Rows) -> None:
        dropped = set(self._dropped)
        sent: dict[bytes, Any] = {}

        async def write(node: Node) -> tuple[int, NDArray[np.bool_]]:
            name = await _table_of(node).local_name(Named(NAME))
            self._tried[_number(node, name)].update(row[: LOW + 1].tobytes() for row in rows)
            return _number(node, name), (
                await sending(node.coordinator.write(name, rows.copy(), delete=False), sent)
            ).acknowledged

        number, acknowledged = await self._ask(write)
        for row, yes in zip(rows, acknowledged.tolist(), strict=True):
            if yes and number in dropped:
                raise Violation(f"a put is acknowledged into dataset {number}, which was dropped before")
            if yes:
                self.written += 1
                key = row[: LOW + 1].tobytes()
                floors = self._floors[number]
                floors[key] = max(floors.get(key, 0), sent[key].version)

    async def _read(self, rows: Rows) -> None:
        dropped = set(self._dropped)
        floors = {number: dict(known) for number, known in self._floors.items()}

        async def read(node: Node) -> tuple[int, Any]:
            name = await _table_of(node).local_name(Named(NAME))
            return _number(node, name), await node.coordinator.read(name, rows[:, : LOW + 1].copy())

        number, got = await self._ask(read)
        if number in dropped:
            return  # a name alone was known here; whoever holds a number is told
        for row, state in zip(got.rows, got.states.tolist(), strict=True):
            if row[VERSION] and row[: LOW + 1].tobytes() not in self._tried[number]:
                raise Violation(f"dataset {number} has an entry that nobody has written to it")
            floor = floors.get(number, {}).get(row[: LOW + 1].tobytes(), 0)
            if state == State.ANSWERED and int(row[VERSION]) < floor and number not in self._dropped:
                raise Violation(
                    f"dataset {number}: {int(row[VERSION])} is read, and {floor} was acknowledged"
                )

    async def _ask(self, work: Callable[[Node], Any]) -> Any:
        address = self._rng.choice(list(self._addresses()))
        return await self._network.call(self.process, address, "client", work, PATIENCE_S)


def _table_of(node: Node) -> DatasetTable:
    return DatasetTable(node.slot, node.membership, node.peers, node.datasets.make)


def _number(node: Node, name: str) -> int:
    """Return the number of the dataset that a node means now by a name of the nodes."""
    known = node.membership.datasets()
    if not number_of(name) and NAME not in known:
        raise NotFoundError("dropped meanwhile")
    return number_of(name) or known[NAME].id
