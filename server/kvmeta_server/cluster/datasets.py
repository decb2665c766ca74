"""Datasets of a node: those that the cluster's table lists are made here, those that it lost are dropped."""

from __future__ import annotations

import threading
from contextlib import suppress

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import KvmetaError
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.seams import Lane
from kvmeta_server.cluster.tables import Tables, number_of


class Datasets:
    """Keeps one node's datasets as the table says."""

    def __init__(self, replica: Replica, state: NodeState, membership: Membership, lane: Lane) -> None:
        self._replica = replica
        self._state = state
        self._membership = membership
        self._lane = lane
        self._making = threading.Lock()
        self._pages = dict(membership.volumes.pages)  # those that are on disk
        self._known = 0  # the serial of the newest tables that were made here

    async def follow(self) -> None:
        """Have here what the tables as they are known say there is; remember them, and the volumes."""
        tables = self._membership.tables
        if tables is not None and tables.serial > self._known:
            with suppress(KvmetaError):
                await self._lane.run(lambda: self._make(tables))

    async def make(self, tables: Tables | None = None) -> None:
        """Have here what datasets tables say there are, by default those that etcd has now."""
        known = await self._membership.tables_now() if tables is None else tables
        await self._lane.run(lambda: self._make(known))

    def _make(self, tables: Tables) -> None:
        """Make what is listed and missing; drop what was listed once and is not any more.

        What is newer than the tables is not dropped.
        """
        with self._making:
            if tables.serial < self._known:
                return  # overtaken by newer ones
            engine, wanted = self._replica.engine, tables.by_local_name
            here = set(self._replica.datasets())
            for name, row in wanted.items():
                if name not in here:
                    engine.create_dataset(
                        name, ttl_s=row.ttl_s, bottom_filter=row.bottom_filter, exist_ok=True
                    )
            for name in here - set(wanted) - {DEFAULT_DATASET}:
                if number_of(name) < tables.next_dataset:
                    engine.drop_dataset(name)
                    self._state.forget(name)
            if tables.serial != self._known:
                for page, raw in list(self._membership.volumes.pages.items()):
                    if self._pages.get(page) is not raw:
                        self._state.set_volumes(page, raw)
                        self._pages[page] = raw
                self._state.set_tables(tables)
                self._known = tables.serial
