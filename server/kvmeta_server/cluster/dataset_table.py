"""The cluster's table of datasets, in etcd, known to every node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import InputError, NotFoundError, UnavailableError
from kvmeta.store import check_dataset_name, check_ttl
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.tables import DatasetRow, Tables, local_name


class DatasetTable:
    """The table as `membership` knows it, changed in etcd; `made` makes changed datasets on this node."""

    def __init__(self, membership: Membership, made: Callable[[], Awaitable[None]]) -> None:
        self._membership = membership
        self._made = made

    async def local_name(self, dataset: str) -> str:
        """Return the name under which nodes hold a dataset; NotFoundError if there is none."""
        if dataset == DEFAULT_DATASET:
            return dataset
        known = self._membership.datasets()
        if dataset not in known:
            known = await self._datasets_now()
        if dataset not in known:
            names = ", ".join(sorted({DEFAULT_DATASET, *known}))
            raise NotFoundError(f"no dataset {dataset!r} (there are: {names}); create_dataset makes one")
        return local_name(dataset, known[dataset].id)

    async def datasets(self) -> list[str]:
        """Return the datasets' names, sorted."""
        return sorted({DEFAULT_DATASET, *await self._datasets_now()})

    async def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> None:
        """Create a dataset on all nodes."""
        check_dataset_name(name)
        check_ttl(ttl_s)

        await self._change(lambda tables: tables.with_dataset(name, ttl_s=ttl_s, bottom_filter=bottom_filter))

    async def drop_dataset(self, name: str) -> None:
        """Drop a dataset on all nodes."""
        if name == DEFAULT_DATASET:
            raise InputError("the default dataset cannot be dropped")

        await self._change(lambda tables: tables.without_dataset(name))

    async def _change(self, change: Callable[[Tables], Tables]) -> None:
        await self._membership.change_tables(lambda tables: (change(tables), {}))
        await self._made()

    async def _datasets_now(self) -> Mapping[str, DatasetRow]:
        try:
            return (await self._membership.tables_now()).datasets
        except UnavailableError:
            if self._membership.tables is None:  # not known is not absent
                raise
            return self._membership.datasets()
