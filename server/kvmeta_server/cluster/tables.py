"""The cluster's tables: datasets and volumes, in etcd, known to every node."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from kvmeta.engine.engine import DEFAULT_DATASET
from kvmeta.errors import InputError, NotFoundError, UnavailableError
from kvmeta.store import check_dataset_name, check_ttl, unregistered
from kvmeta.volumes import STATES, VOLUME_MAX, Volume, normal_uri
from kvmeta_server.cluster.membership import Membership, local_name
from kvmeta_server.cluster.store import Tables

T = TypeVar("T")
_TRIES = 20


class EtcdTables(Tables):
    """The tables as `membership` knows them, changed in etcd. For threads: `run` takes work to the loop."""

    def __init__(
        self,
        membership: Membership,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        made: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._membership = membership
        self._run = run
        self._made = made

    # Datasets

    def local_name(self, dataset: str) -> str:
        """Return the name under which nodes hold a dataset; NotFoundError if there is none."""
        if dataset == DEFAULT_DATASET:
            return dataset
        known = self._membership.datasets()
        if dataset not in known:
            known = self._datasets_now()
        if dataset not in known:
            names = ", ".join(sorted({DEFAULT_DATASET, *known}))
            raise NotFoundError(f"no dataset {dataset!r} (there are: {names}); create_dataset makes one")
        return local_name(dataset, known[dataset]["id"])

    def names(self) -> list[str]:
        """Return the datasets' names, sorted."""
        return sorted({DEFAULT_DATASET, *self._datasets_now()})

    def create(self, name: str, ttl_s: float | None, bottom_filter: bool) -> None:
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

        self._run(self._change_datasets(change))

    def drop(self, name: str) -> None:
        """Drop a dataset on all nodes."""
        if name == DEFAULT_DATASET:
            raise InputError("the default dataset cannot be dropped")

        def change(raw: bytes | None) -> bytes:
            table = _table(raw)
            if name not in table["datasets"]:
                raise NotFoundError(f"no dataset {name!r}")
            del table["datasets"][name]
            return json.dumps(table).encode()

        self._run(self._change_datasets(change))

    async def _change_datasets(self, change: Callable[[bytes | None], bytes]) -> None:
        await self._membership.change("datasets", change)
        await self._made()

    def _datasets_now(self) -> dict[str, Any]:
        try:
            held = self._run(self._membership.read("datasets"))
        except UnavailableError:
            if self._membership.dataset_table() is None:  # not known is not absent
                raise
            return self._membership.datasets()
        return dict(_table(None if held is None else held.data)["datasets"])

    # Volumes

    def add(self, uri: str | Path, *, name: str | None = None, size_bytes: int | None = None) -> Volume:
        """Register `uri` and return its volume; a URI known already returns the one it has."""
        text = normal_uri(uri)
        label = name if name is not None else text.rsplit("/", 1)[-1]
        return self._run(self._add(text, label, size_bytes))  # type: ignore[no-any-return]

    async def _add(self, uri: str, name: str, size_bytes: int | None) -> Volume:
        for _ in range(_TRIES):
            known = await self._membership.read(f"uris/{uri}")
            if known is not None:
                return await self._volume(int(known.data))
            held = await self._membership.read("next_volume")
            number = 1 if held is None else int(held.data)
            if number > VOLUME_MAX:
                raise InputError("all 2**32 - 1 volume numbers are taken")
            volume = Volume(number, uri, name, "online", size_bytes)
            writes: dict[str, bytes | None] = {
                f"volumes/{number}": _encoded(volume),
                f"uris/{uri}": str(number).encode(),
                "next_volume": str(number + 1).encode(),
            }
            if await self._membership.change_all(
                writes, {f"uris/{uri}": 0, "next_volume": held.revision if held else 0}
            ):
                return volume
        raise UnavailableError("volumes change all the time; try again")

    def get(self, volume: int | str | Path) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        if isinstance(volume, (str, Path)):
            uri = normal_uri(volume)
            number = self._membership.value(f"uris/{uri}") or self._read(f"uris/{uri}")
            if number is None:
                raise NotFoundError(f"no volume with URI {uri}; register it with store.volumes.add")
            return self.get(int(number))
        raw = self._membership.value(f"volumes/{int(volume)}") or self._read(f"volumes/{int(volume)}")
        if raw is None:
            raise unregistered(int(volume))
        return _decoded(raw)

    def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        volumes = [_decoded(raw) for raw in self._membership.below("volumes").values()]
        return sorted(volumes, key=int)

    def move(self, volume: int | str | Path, uri: str | Path) -> Volume:
        """Let `volume` stand for another URI from now on; every entry in it follows."""
        return self._run(self._move(self.get(volume), normal_uri(uri)))  # type: ignore[no-any-return]

    async def _move(self, volume: Volume, uri: str) -> Volume:
        for _ in range(_TRIES):
            taken = await self._membership.read(f"uris/{uri}")
            if taken is not None and int(taken.data) != int(volume):
                raise InputError(f"volume {int(taken.data)} has the URI {uri} already")
            held = await self._membership.read(f"volumes/{int(volume)}")
            if held is None:
                raise unregistered(int(volume))
            now = _decoded(held.data)
            moved = Volume(int(now), uri, now.name, now.state, now.size_bytes)
            writes: dict[str, bytes | None] = {f"volumes/{int(now)}": _encoded(moved)}
            if now.uri != uri:
                writes |= {f"uris/{now.uri}": None, f"uris/{uri}": str(int(now)).encode()}
            conditions = {f"volumes/{int(now)}": held.revision, f"uris/{uri}": taken.revision if taken else 0}
            if await self._membership.change_all(writes, conditions):
                return moved
        raise UnavailableError("volumes change all the time; try again")

    def set_state(self, volume: int | str | Path, state: str) -> Volume:
        """Set a volume "online" or "offline"."""
        if state not in STATES:
            raise InputError(f"state: expected one of {', '.join(STATES)}, got {state!r}")
        number = int(self.get(volume))

        def change(raw: bytes | None) -> bytes:
            if raw is None:
                raise unregistered(number)
            now = _decoded(raw)
            return _encoded(Volume(int(now), now.uri, now.name, state, now.size_bytes))

        return _decoded(self._run(self._membership.change(f"volumes/{number}", change)))

    async def _volume(self, number: int) -> Volume:
        held = await self._membership.read(f"volumes/{number}")
        if held is None:
            raise unregistered(number)
        return _decoded(held.data)

    def _read(self, key: str) -> bytes | None:
        """Read from etcd what is not known here: it may be newer than the last change seen."""
        held = self._run(self._membership.read(key))
        return None if held is None else held.data


def _table(raw: bytes | None) -> dict[str, Any]:
    return {"next": 1, "datasets": {}} if raw is None else dict(json.loads(raw))


def _encoded(volume: Volume) -> bytes:
    fields = {
        "number": int(volume), "uri": volume.uri, "name": volume.name, "state": volume.state,
        "size_bytes": volume.size_bytes,
    }  # fmt: skip
    return json.dumps(fields).encode()


def _decoded(raw: bytes) -> Volume:
    fields = json.loads(raw)
    return Volume(fields["number"], fields["uri"], fields["name"], fields["state"], fields["size_bytes"])
