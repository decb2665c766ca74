"""The cluster's table of volumes, in etcd, known to every node. The rules are those of `kvmeta.volumes`."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Sequence

from kvmeta.protocol.volume_pages import VolumePages
from kvmeta.volumes import NewVolume, Volume, VolumeRow, normal_uri, registered, unregistered
from kvmeta_server.cluster.membership import Membership, Writes
from kvmeta_server.cluster.tables import Tables


class VolumeTable:
    """The table as `membership` knows it, changed in etcd."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._changing = asyncio.Lock()  # this node's changes one after the other: they would collide in etcd

    def count(self) -> int:
        """Return how many volumes there are."""
        return len(self._known)

    async def register(self, wanted: Sequence[NewVolume]) -> builtins.list[Volume]:
        """Register volumes and return them; a URI known already returns the one it has."""
        rows, new = registered(wanted, self._known.of_uri, 1)
        if new:

            def add(volumes: VolumePages, tables: Tables) -> tuple[Tables, builtins.list[VolumeRow]]:
                nonlocal rows
                rows, new = registered(wanted, volumes.of_uri, tables.next_volume)
                return (tables.with_volumes(len(new)) if new else tables), new

            await self._change(add)
        return [row.volume() for row in rows]

    async def get(self, name: int | str) -> Volume:
        """Return a volume by number or URI; NotFoundError if it is not registered."""
        row = _found(self._known, name)
        if row is None:  # it may be newer than the last news
            await self._membership.catch_up()
            row = _found(self._known, name)
        if row is None:
            raise unregistered(_named(name))
        return row.volume()

    async def list(self) -> builtins.list[Volume]:
        """Return all volumes, by number."""
        return [*self._known]

    async def messages(self, after: int, bytes_max: int) -> tuple[bytes, bool]:
        """Return volumes above a number as the bytes of a ListVolumesResponse, and whether they are all."""
        return self._known.messages(after, bytes_max)

    async def move(self, name: int | str, uri: str) -> Volume:
        """Let a volume stand for another URI from now on; every entry in it follows."""
        text = normal_uri(uri)

        def moved(volumes: VolumePages, row: VolumeRow) -> VolumeRow:
            owner = volumes.of_uri(text)
            return row.moved(text, None if owner is None else owner.number)

        return await self._replace(name, moved)

    async def set_state(self, name: int | str, state: str) -> Volume:
        """Set a volume "online", "offline" or "retired"."""
        return await self._replace(name, lambda _, row: row.in_state(state))

    @property
    def _known(self) -> VolumePages:
        return self._membership.volumes

    async def _replace(
        self, name: int | str, change: Callable[[VolumePages, VolumeRow], VolumeRow]
    ) -> Volume:
        now: builtins.list[VolumeRow] = []

        def replace(volumes: VolumePages, tables: Tables) -> tuple[Tables, builtins.list[VolumeRow]]:
            row = _found(volumes, name)
            if row is None:
                raise unregistered(_named(name))
            now[:] = [change(volumes, row)]
            return tables.with_volumes(), now

        await self._change(replace)
        return now[0].volume()

    async def _change(
        self, change: Callable[[VolumePages, Tables], tuple[Tables, builtins.list[VolumeRow]]]
    ) -> None:
        def make(tables: Tables) -> tuple[Tables, Writes]:
            volumes = self._known
            changed, rows = change(volumes, tables)
            return changed, {f"volumes/{page}": raw for page, raw in volumes.pages_with(rows).items()}

        async with self._changing:
            await self._membership.change_tables(make, known=True)


def _found(volumes: VolumePages, name: int | str) -> VolumeRow | None:
    return volumes.of_uri(normal_uri(name)) if isinstance(name, str) else volumes.get(int(name))


def _named(name: int | str) -> int | str:
    return normal_uri(name) if isinstance(name, str) else int(name)
