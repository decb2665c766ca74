"""The cluster's table of datasets, in etcd, known to every node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import numpy as np

from kvmeta.engine.state import DEFAULT_DATASET, another_dataset
from kvmeta.errors import InputError, NotFoundError, OutcomeUnknownError, UnavailableError
from kvmeta.store import check_dataset_name, check_ttl
from kvmeta_server.backend import Named
from kvmeta_server.cluster.membership import Membership, Writes
from kvmeta_server.cluster.seams import PeerError, Peers
from kvmeta_server.cluster.tables import DatasetRow, Tables, local_name

TELL_S = 5.0
"""How long a drop waits for enough nodes to know of it."""
_PAUSE_S = 0.2


class DatasetTable:
    """The table as `membership` knows it, changed in etcd; `made` makes what it says on this node, `slot`."""

    def __init__(
        self, slot: int, membership: Membership, peers: Peers, made: Callable[[Tables], Awaitable[None]]
    ) -> None:
        self._slot = slot
        self._membership = membership
        self._peers = peers
        self._made = made

    async def local_name(self, dataset: Named) -> str:
        """Return the name under which nodes hold a dataset; NotFoundError if there is none.

        A number that is not known here may be newer than what is, so etcd is asked first. So it is for a name
        alone that is not known; for one that is, the news that there is another by now has reached this node
        before the drop was done (`drop_dataset`).
        """
        name, number = dataset
        if name == DEFAULT_DATASET:
            return name
        rows = self._membership.datasets()
        if name not in rows or number not in (0, rows[name].id):
            rows = await self._datasets_now(number)
        if name in rows and number in (0, rows[name].id):
            return local_name(name, rows[name].id)
        if name in rows:
            raise another_dataset(name)
        names = ", ".join(sorted({DEFAULT_DATASET, *rows}))
        raise NotFoundError(f"no dataset {name!r} (there are: {names}); create_dataset makes one")

    async def datasets(self) -> list[str]:
        """Return the datasets' names, sorted."""
        return sorted({DEFAULT_DATASET, *await self._datasets_now()})

    async def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> None:
        """Create a dataset on all nodes."""
        check_dataset_name(name)
        check_ttl(ttl_s)

        made = await self._change(
            lambda tables: tables.with_dataset(name, ttl_s=ttl_s, bottom_filter=bottom_filter)
        )
        await self._tell(made, 0.0)

    async def drop_dataset(self, name: str) -> None:
        """Drop a dataset on all nodes.

        OutcomeUnknownError where it is dropped, and so many nodes cannot be told that these could acknowledge
        writes into it together.
        """
        if name == DEFAULT_DATASET:
            raise InputError("the default dataset cannot be dropped")

        dropped = await self._change(lambda tables: tables.without_dataset(name))
        if not await self._tell(dropped, TELL_S):
            raise OutcomeUnknownError(
                f"dataset {name!r} is dropped, and too few nodes could be told: until they are, they may "
                "acknowledge writes into it, which will be gone"
            )

    async def _change(self, change: Callable[[Tables], Tables]) -> Tables:
        changed: list[Tables] = []

        def make(tables: Tables) -> tuple[Tables, Writes]:
            changed[:] = [change(tables)]
            return changed[0], {}

        await self._membership.change_tables(make)
        await self._made(changed[0])
        return changed[0]

    async def _tell(self, tables: Tables, until_s: float) -> bool:
        """Tell the other nodes of tables; return whether enough know them, which is waited for so long.

        Enough is when of no partition so many owners are left that they could acknowledge a write together.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + until_s
        knows = {self._slot}

        async def tell(slot: int) -> None:
            with suppress(PeerError):
                if await self._peers.tell(slot, tables.encode()) >= tables.serial:
                    knows.add(slot)

        while True:
            cluster_map = self._membership.current
            others = [node.slot for node in cluster_map.members if node.slot not in knows]
            await asyncio.gather(*(tell(slot) for slot in others))
            cluster_map = self._membership.current
            ignorant = (cluster_map.alive & ~np.isin(cluster_map.owners, list(knows))).sum(axis=1)
            if (ignorant < cluster_map.write_quorums[0]).all():
                return True
            if loop.time() >= end:
                return False
            await asyncio.sleep(_PAUSE_S)

    async def _datasets_now(self, number: int = 0) -> Mapping[str, DatasetRow]:
        """Return the datasets as etcd has them; where it is away, as they are known here.

        UnavailableError where none are known, or where that of a number may be newer than what is.
        """
        try:
            return (await self._membership.tables_now()).datasets
        except UnavailableError:
            known = self._membership.tables
            if known is None or number >= known.next_dataset:  # not known is not absent
                raise
            return known.datasets
