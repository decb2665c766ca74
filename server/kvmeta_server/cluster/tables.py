"""The cluster's table of datasets, in etcd, known to every node."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import InputError, NotFoundError, UnavailableError
from kvmeta.store import check_dataset_name, check_ttl
from kvmeta_server.cluster.membership import Membership, local_name, table_of


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
        return local_name(dataset, known[dataset]["id"])

    async def datasets(self) -> list[str]:
        """Return the datasets' names, sorted."""
        return sorted({DEFAULT_DATASET, *await self._datasets_now()})

    async def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> None:
        """Create a dataset on all nodes."""
        check_dataset_name(name)
        check_ttl(ttl_s)

        def change(raw: bytes | None) -> bytes:
            table = table_of(raw)
            if name == DEFAULT_DATASET or name in table["datasets"]:
                raise InputError(f"dataset {name!r} exists already")
            number = table["next"]
            table["datasets"][name] = {"id": number, "ttl_s": ttl_s, "bottom_filter": bottom_filter}
            return json.dumps({**table, "next": number + 1}).encode()

        await self._change_datasets(change)

    async def drop_dataset(self, name: str) -> None:
        """Drop a dataset on all nodes."""
        if name == DEFAULT_DATASET:
            raise InputError("the default dataset cannot be dropped")

        def change(raw: bytes | None) -> bytes:
            table = table_of(raw)
            if name not in table["datasets"]:
                raise NotFoundError(f"no dataset {name!r}")
            del table["datasets"][name]
            return json.dumps(table).encode()

        await self._change_datasets(change)

    async def _change_datasets(self, change: Callable[[bytes | None], bytes]) -> None:
        await self._membership.change("datasets", change)
        await self._made()

    async def _datasets_now(self) -> Mapping[str, Any]:
        try:
            held = await self._membership.read("datasets")
        except UnavailableError:
            if self._membership.dataset_table() is None:  # not known is not absent
                raise
            return self._membership.datasets()
        return dict(table_of(None if held is None else held.data)["datasets"])
