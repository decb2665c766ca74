"""Datasets of a node: those that the cluster's table lists are made here, those that it lost are dropped."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import Any

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import KvmetaError
from kvmeta_server.cluster.membership import Membership, local_name, number_of, table_of
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.seams import Lane


class Datasets:
    """Keeps one node's datasets as the table says."""

    def __init__(self, replica: Replica, state: NodeState, membership: Membership, lane: Lane) -> None:
        self._replica = replica
        self._state = state
        self._membership = membership
        self._lane = lane
        self._making = threading.Lock()

    async def follow(self) -> None:
        """Have here what the table as it is known says there is."""
        table = self._membership.dataset_table()
        with suppress(KvmetaError):
            await self._lane.run(lambda: self._make_known(table))

    async def make(self) -> None:
        """Have here what datasets etcd says there are, now."""
        held = await self._membership.read("datasets")
        table = table_of(None if held is None else held.data)
        await self._lane.run(lambda: self._make_known(table))

    def _make_known(self, table: dict[str, Any] | None) -> None:
        """Make what is listed and missing; drop what was listed once and is not any more.

        Without a table nothing is known, so nothing is dropped; nor is what is newer than the table.
        """
        if table is not None:
            with self._making:
                self._make_listed(table)

    def _make_listed(self, table: dict[str, Any]) -> None:
        engine = self._replica.engine
        wanted = {local_name(name, options["id"]): options for name, options in table["datasets"].items()}
        here = set(self._replica.datasets())
        for name, options in wanted.items():
            if name not in here:
                engine.create_dataset(
                    name, ttl_s=options["ttl_s"], bottom_filter=options["bottom_filter"], exist_ok=True
                )
        for name in here - set(wanted) - {DEFAULT_DATASET}:
            if number_of(name) < table["next"]:
                engine.drop_dataset(name)
                self._state.forget(name)
        raw = json.dumps(table).encode()
        if raw != self._state.datasets():
            self._state.set_datasets(raw)
