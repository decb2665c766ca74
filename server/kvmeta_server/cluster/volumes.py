"""The cluster's table of volumes, in etcd, known to every node. The rules are those of `kvmeta.volumes`."""

from __future__ import annotations

import json
from dataclasses import asdict

from kvmeta.errors import UnavailableError
from kvmeta.volumes import Volume, VolumeRow, check_codec, known_row, new_row, normal_uri, unregistered
from kvmeta_server.cluster.membership import Membership

_TRIES = 20


class VolumeTable:
    """The table as `membership` knows it, changed in etcd."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def count(self) -> int:
        """Return how many volumes there are."""
        return len(self._membership.below("volumes"))

    async def add(
        self, uri: str, *, name: str | None = None, size_bytes: int | None = None, codec: str = "raw"
    ) -> Volume:
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

    async def get(self, name: int | str) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        return (await self._row(name)).volume()

    async def list(self) -> list[Volume]:
        """Return all volumes, by number."""
        rows = [_decoded(raw).volume() for raw in self._membership.below("volumes").values()]
        return sorted(rows, key=int)

    async def move(self, name: int | str, uri: str) -> Volume:
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

    async def set_state(self, name: int | str, state: str) -> Volume:
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


def _encoded(row: VolumeRow) -> bytes:
    return json.dumps(asdict(row)).encode()


def _decoded(raw: bytes) -> VolumeRow:
    return VolumeRow(**json.loads(raw))
