"""The cluster's tables: datasets and volumes, in etcd, known to every node."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import InputError, NotFoundError, UnavailableError
from kvmeta.store import check_dataset_name, check_ttl
from kvmeta.volumes import Volume, VolumeRow, check_codec, known_row, new_row, normal_uri, unregistered
from kvmeta_server.cluster.membership import Membership, local_name

_TRIES = 20


class Tables:
    """The tables as `membership` knows them, changed in etcd; `made` makes changed datasets on this node."""

    def __init__(self, membership: Membership, made: Callable[[], Awaitable[None]]) -> None:
        self._membership = membership
        self._made = made

    # Datasets

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

    async def names(self) -> list[str]:
        """Return the datasets' names, sorted."""
        return sorted({DEFAULT_DATASET, *await self._datasets_now()})

    async def create(self, name: str, ttl_s: float | None, bottom_filter: bool) -> None:
        """Create a dataset on all nodes."""
        check_dataset_name(name)
        check_ttl(ttl_s)

        def change(raw: bytes | None) -> bytes:
            table = _table(raw)
            if name == DEFAULT_DATASET or name in table["datasets"]:
                raise InputError(f"dataset {name!r} exists already")
            number = table["next"]
            table["datasets"][name] = {"id": number, "ttl_s": ttl_s, "bottom_filter": bottom_filter}
            return json.dumps({**table, "next": number + 1}).encode()

        await self._change_datasets(change)

    async def drop(self, name: str) -> None:
        """Drop a dataset on all nodes."""
        if name == DEFAULT_DATASET:
            raise InputError("the default dataset cannot be dropped")

        def change(raw: bytes | None) -> bytes:
            table = _table(raw)
            if name not in table["datasets"]:
                raise NotFoundError(f"no dataset {name!r}")
            del table["datasets"][name]
            return json.dumps(table).encode()

        await self._change_datasets(change)

    async def _change_datasets(self, change: Callable[[bytes | None], bytes]) -> None:
        await self._membership.change("datasets", change)
        await self._made()

    async def _datasets_now(self) -> dict[str, Any]:
        try:
            held = await self._membership.read("datasets")
        except UnavailableError:
            if self._membership.dataset_table() is None:  # not known is not absent
                raise
            return self._membership.datasets()
        return dict(_table(None if held is None else held.data)["datasets"])

    # Volumes

    async def add_volume(self, uri: str, name: str | None, size_bytes: int | None, codec: str) -> Volume:
        """Register `uri` and return its volume; a URI known already returns the one it has."""
        text, stored = normal_uri(uri), check_codec(codec)
        for _ in range(_TRIES):
            known = await self._membership.read(f"uris/{text}")
            if known is not None:
                held_row = await self._membership.read(f"volumes/{int(known.data)}")
                if held_row is None:
                    raise unregistered(int(known.data))
                return known_row(_decoded(held_row.data), stored).volume()
            held = await self._membership.read("next_volume")
            row = new_row(1 if held is None else int(held.data), text, name, size_bytes, stored)
            writes: dict[str, bytes | None] = {
                f"volumes/{row.number}": _encoded(row),
                f"uris/{text}": str(row.number).encode(),
                "next_volume": str(row.number + 1).encode(),
            }
            if await self._membership.change_all(
                writes, {f"uris/{text}": 0, "next_volume": held.revision if held else 0}
            ):
                return row.volume()
        raise UnavailableError("volumes change all the time; try again")

    async def volume(self, name: int | str) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        return (await self._row(name)).volume()

    def volumes(self) -> list[Volume]:
        """Return all volumes, by number."""
        rows = [_decoded(raw).volume() for raw in self._membership.below("volumes").values()]
        return sorted(rows, key=int)

    async def move_volume(self, name: int | str, uri: str) -> Volume:
        """Let a volume stand for another URI from now on; every entry in it follows."""
        number, text = (await self._row(name)).number, normal_uri(uri)
        for _ in range(_TRIES):
            taken = await self._membership.read(f"uris/{text}")
            held = await self._membership.read(f"volumes/{number}")
            if held is None:
                raise unregistered(number)
            now = _decoded(held.data)
            moved = now.moved(text, None if taken is None else int(taken.data))
            writes: dict[str, bytes | None] = {f"volumes/{number}": _encoded(moved)}
            if now.uri != text:
                writes |= {f"uris/{now.uri}": None, f"uris/{text}": str(number).encode()}
            conditions = {
                f"volumes/{number}": held.revision, f"uris/{text}": taken.revision if taken else 0
            }  # fmt: skip
            if await self._membership.change_all(writes, conditions):
                return moved.volume()
        raise UnavailableError("volumes change all the time; try again")

    async def set_volume_state(self, name: int | str, state: str) -> Volume:
        """Set a volume "online", "offline" or "retired"."""
        number = (await self._row(name)).number

        def change(raw: bytes | None) -> bytes:
            if raw is None:
                raise unregistered(number)
            return _encoded(_decoded(raw).in_state(state))

        return _decoded(await self._membership.change(f"volumes/{number}", change)).volume()

    async def _row(self, name: int | str) -> VolumeRow:
        if isinstance(name, str):
            uri = normal_uri(name)
            raw = await self._value(f"uris/{uri}")
            if raw is None:
                raise unregistered(uri)
            name = int(raw)
        raw = await self._value(f"volumes/{int(name)}")
        if raw is None:
            raise unregistered(int(name))
        return _decoded(raw)

    async def _value(self, key: str) -> bytes | None:
        """Return a key's value, from etcd where it is not known here: it may be newer than the last news."""
        known = self._membership.value(key)
        if known is not None:
            return known
        held = await self._membership.read(key)
        return None if held is None else held.data


def _table(raw: bytes | None) -> dict[str, Any]:
    return {"next": 1, "datasets": {}} if raw is None else dict(json.loads(raw))


def _encoded(row: VolumeRow) -> bytes:
    return json.dumps(asdict(row)).encode()


def _decoded(raw: bytes) -> VolumeRow:
    return VolumeRow(**json.loads(raw))
