"""Membership: what etcd says of the cluster, followed by every node, and changed by compare-and-swap alone.

    PREFIX/map          the cluster map (cluster_map.py)
    PREFIX/tables       the datasets, and which numbers are taken (tables.py)
    PREFIX/volumes/P    a page of volumes (kvmeta/protocol/volume_pages.py)
    PREFIX/id           the cluster's ID: where it is alone, etcd has lost the rest
    PREFIX/live/SLOT    a node's life, there while its lease lasts
    PREFIX/driver       the slot of the node that drives moves, there while its lease lasts
    PREFIX/twin/SLOT    two lives of one node that were seen at once

Without etcd the node goes on with what it knows. Only changes need it, and they say so. So it does where etcd
has lost what this node knows (believing.py): nothing of it is believed then (`refusal`), and nothing is
changed through this node, until `kvmeta cluster recover` has put things right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from kvmeta.errors import CorruptionError, KvmetaError, UnavailableError
from kvmeta.protocol.volume_pages import VolumePages
from kvmeta_server.cluster.believing import Belief
from kvmeta_server.cluster.cluster_map import ClusterMap
from kvmeta_server.cluster.lease import Lease
from kvmeta_server.cluster.seams import Authority, Changed, Compacted, Events, Pace, Put, Value
from kvmeta_server.cluster.tables import DatasetRow, Tables, decode_tables

LEASE_S = 5
"""How long a node counts as live after its last sign of life."""
_RETRY_S = 0.5
_CAS_TRIES = 20
_OWN_S = 1.0

Changes = Callable[[ClusterMap], ClusterMap]
Writes = dict[str, bytes | None]
TableChanges = Callable[[Tables], tuple[Tables, Writes]]


def prefix_of(cluster: str) -> str:
    """Return what all keys of a cluster begin with."""
    return f"/kvmeta/{cluster}"


def sign_of_life(store_id: bytes, life: int) -> bytes:
    """Return what a node has in etcd while it lives: its store's ID and its life (parties.py), in hex."""
    return f"{store_id.hex()}/{life:x}".encode()


def _store_of(sign: bytes) -> bytes:
    return sign.partition(b"/")[0]


class Membership:
    """The cluster as etcd has it. `adopt` makes the node work under a new map before others hear of it."""

    def __init__(
        self,
        authority: Authority,
        cluster: str,
        adopt: Callable[[ClusterMap], Awaitable[None]],
        log: Events,
        pace: Pace,
    ) -> None:
        self._authority = authority
        self._prefix = prefix_of(cluster)
        self._adopt = adopt
        self._log = log
        self._pace = pace
        self._values: dict[str, Value] = {}
        self.belief = Belief(authority.url, self._prefix)
        self._looked_at = (-1, -1)  # the revisions of etcd's map and tables that were judged
        self._news = asyncio.Condition()
        self._judging = asyncio.Lock()
        self._revision = 0
        self._lease = Lease(authority, LEASE_S)
        self._slot = -1
        self._sign = b""
        self._fenced = False
        self._met = 0.0  # since when another life has this node's place
        self._on_twin: Callable[[str], None] = lambda reason: None
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: list[Callable[[], None]] = []
        self.answers = False
        """Whether etcd answered lately."""

    # What is known

    @property
    def current(self) -> ClusterMap:
        """Return the newest map."""
        assert self.belief.map is not None
        return self.belief.map

    @property
    def refusal(self) -> str:
        """Return why nothing that etcd holds is believed; "" where it is."""
        return self.belief.refusal

    async def newer_than(self, epoch: int, timeout_s: float) -> None:
        """Return when there is a map newer than `epoch`, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self.current.epoch > epoch)

    def live(self) -> set[int]:
        """Return the slots of the nodes whose leases last."""
        start = f"{self._prefix}/live/"
        return {int(key.removeprefix(start)) for key in self._values if key.startswith(start)}

    def value(self, key: str) -> bytes | None:
        """Return the value of a key below the prefix."""
        held = self._values.get(f"{self._prefix}/{key}")
        return None if held is None else held.data

    @property
    def tables(self) -> Tables | None:
        """Return the newest tables; None where none are known."""
        return self.belief.tables

    @property
    def volumes(self) -> VolumePages:
        """Return the volumes, as they were when etcd was believed last."""
        return self.belief.volumes

    def datasets(self) -> Mapping[str, DatasetRow]:
        """Return the datasets by name, as far as they are known."""
        return {} if self.tables is None else self.tables.datasets

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change that is seen."""
        self._listeners.append(listener)

    def lease_left_s(self) -> float:
        """Return for how long this node surely may act for the cluster: until its lease ends.

        That is 0 where etcd is not believed, or this node takes no part.
        """
        return 0.0 if self.refusal or self._fenced else self._lease.left_s()

    @property
    def is_alive(self) -> bool:
        """Return whether etcd has this life's sign in this node's place, as far as is known."""
        held = self.value(f"live/{self._slot}")
        return held is not None and held == self._sign and self.lease_left_s() > 0

    def stand_back(self, reason: str) -> None:
        """Act for the cluster no more."""
        self._fenced = True
        self._log.warning("fenced", reason=reason)

    # Life

    async def load(self) -> None:
        """Read everything; UnavailableError where etcd does not answer."""
        async with self._judging:
            await self._load()

    async def _load(self) -> None:
        values, revision = await self._authority.below(f"{self._prefix}/")
        pages = {value.key: value.data for value in values if value.key.startswith(self._volumes_at)}
        self._values = {value.key: value for value in values if value.key not in pages}
        self.answers = True
        for _ in range(2):  # what was read may have been overtaken by what was learned meanwhile
            self._looked_at = (-1, -1)
            await self._look(fresh=True)
            if not self.refusal:
                break
            await self._read_again()
        if not self.refusal:
            self._take_pages(pages)
        self._revision = revision
        self._tell()
        async with self._news:
            self._news.notify_all()

    def start(self, slot: int, store_id: bytes, life: int, on_twin: Callable[[str], None]) -> None:
        """Follow etcd, and keep this node's lease, from now on.

        `on_twin` is told where another life of this node takes part.
        """
        self._slot, self._on_twin = slot, on_twin
        self._sign = sign_of_life(store_id, life)
        self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._keep_lease())]

    async def stop(self) -> None:
        """End; give the lease up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(KvmetaError):
            await self._lease.end()
        await self._authority.close()

    # Changes

    async def found(self, founded: ClusterMap) -> bool:
        """Make the first map of a cluster and its tables, where there is nothing; return whether it did."""
        tables = Tables(founded.cluster_id)
        writes = {"tables": tables.encode(), "id": founded.cluster_id.hex().encode(), "map": founded.encode()}
        return await self.change_all(writes, dict.fromkeys(writes, 0))

    async def change_map(self, change: Changes) -> ClusterMap:
        """Make a change of the map, again on what others made of it meanwhile; return the map with it.

        What `change` raises ends it. UnavailableError where etcd's map does not go on from the known one.
        """
        full = f"{self._prefix}/map"
        for _ in range(_CAS_TRIES):
            held = await self._authority.get(full)
            now = self.belief.map_in(held)
            changed = change(now)
            if held is None or changed is now:
                return now
            revision = await self._authority.txn([Put(full, changed.encode())], held={full: held.revision})
            if revision:
                await self._seen(revision)
                return changed
        raise UnavailableError(f"{full} changes all the time; try again")

    async def change_tables(self, change: TableChanges, *, known: bool = False) -> None:
        """Replace the tables by what `change` makes of them, with other writes in the same transaction.

        The map must go on from the one known here, and be the same when it is done. With `known`, `change` is
        asked once all that the tables tell of is known here.
        """
        full, at_map = f"{self._prefix}/tables", f"{self._prefix}/map"
        for _ in range(_CAS_TRIES):
            map_held, held = await self._authority.get(at_map), await self._authority.get(full)
            self.belief.map_in(map_held)
            now = self.belief.tables_in(held)
            assert map_held is not None
            assert held is not None
            if known:
                await self._seen(held.revision)
            if known and (self.tables is None or self.tables.serial != now.serial):
                continue
            changed, writes = change(now)
            if changed is now:
                return
            puts = [Put(f"{self._prefix}/{key}", data) for key, data in writes.items()]
            revision = await self._authority.txn(
                [Put(full, changed.encode()), *puts],
                held={at_map: map_held.revision, full: held.revision},
            )
            if revision:
                await self._seen(revision)
                return
        raise UnavailableError(f"{full} changes all the time; try again")

    async def catch_up(self) -> None:
        """Wait a moment until what etcd's tables tell of now is known here."""
        with suppress(UnavailableError):
            held = await self.read("tables")
            if held is not None:
                await self._seen(held.revision)

    async def tables_now(self) -> Tables:
        """Return the tables as etcd has them now; UnavailableError where it is away or not believed."""
        return self.belief.tables_in(await self.read("tables"))

    async def change_all(self, writes: Mapping[str, bytes | None], held: Mapping[str, int]) -> bool:
        """Make several writes at once if the keys of `held` have these revisions (0: absent)."""
        revision = await self._authority.txn(
            [Put(f"{self._prefix}/{key}", data) for key, data in writes.items()],
            held={f"{self._prefix}/{key}": revision for key, revision in held.items()},
        )
        await self._seen(revision)
        return revision != 0

    async def read(self, key: str) -> Value | None:
        """Read a key from etcd itself."""
        return await self._authority.get(f"{self._prefix}/{key}")

    async def raw(self) -> tuple[dict[str, Value], set[int]]:
        """Return what etcd holds, believed or not: its map and tables, and the numbers of its pages."""
        values, _ = await self._authority.below(f"{self._prefix}/")
        held = {value.key.removeprefix(f"{self._prefix}/"): value for value in values}
        pages = {int(key.partition("/")[2]) for key in held if key.startswith("volumes/")}
        return {key: held[key] for key in ("map", "tables") if key in held}, pages

    async def is_driver(self) -> bool:
        """Return whether this node drives moves: it holds the key, or takes it where nobody does."""
        if self.lease_left_s() < 1 or not self.answers:
            return False
        held = self._values.get(f"{self._prefix}/driver")
        if held is not None:
            return held.data == str(self._slot).encode()
        key = f"{self._prefix}/driver"
        return bool(
            await self._authority.txn([Put(key, str(self._slot).encode(), self._lease.id)], held={key: 0})
        )

    async def _seen(self, revision: int) -> None:
        """Wait a moment for a change of our own to come back: what is asked here next shall know of it."""
        if not self._tasks:  # nobody follows yet
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_OWN_S), self._news:
                await self._news.wait_for(lambda: self._revision >= revision)

    async def _follow(self) -> None:
        while True:
            try:
                async for changes in self._authority.watch(f"{self._prefix}/", self._revision):
                    if changes:
                        await self._take(changes)
                    else:  # it is connected, maybe to an etcd that was set back meanwhile
                        await self._check_unchanged()
            except Compacted:
                pass
            except Exception as error:  # noqa: BLE001 - a full disk, say: who follows no map must try again
                self._log.fault("membership", error)
            try:
                await self.load()
                await self._mark()
            except UnavailableError:
                pass
            except Exception as error:  # noqa: BLE001
                self._log.fault("membership", error)
            await asyncio.sleep(_RETRY_S)

    async def _mark(self) -> None:
        """Leave the cluster's ID where etcd has lost all else, so that nobody founds another in its place."""
        if self.refusal and self.value("map") is None and self.value("id") is None:
            writes = {"id": self.current.cluster_id.hex().encode()}
            await self.change_all(writes, {"map": 0, "id": 0})

    async def _check_unchanged(self) -> None:
        """Raise Compacted where etcd's map or tables are not those that were seen last."""
        for key in (f"{self._prefix}/map", f"{self._prefix}/tables"):
            if await self._authority.get(key) != self._values.get(key):
                raise Compacted

    async def _take(self, changes: list[Changed]) -> None:
        async with self._judging:
            await self._take_in_turn(changes)

    async def _take_in_turn(self, changes: list[Changed]) -> None:
        pages: dict[str, bytes] = {}
        for change in changes:
            if change.data is None:
                self._values.pop(change.key, None)
            elif change.key.startswith(self._volumes_at):
                pages[change.key] = change.data
            else:
                self._values[change.key] = Value(change.key, change.data, change.revision)
        was_refused = self.refusal
        await self._look()
        if was_refused and not self.refusal:
            raise Compacted  # what came meanwhile was not taken over
        if not self.refusal:
            self._take_pages(pages)
        # Seen is what this node works under: whoever waits for a revision asks for its map next.
        self._revision = max(self._revision, changes[-1].revision)
        self._tell()
        async with self._news:
            self._news.notify_all()

    async def _read_again(self) -> None:
        for key in (f"{self._prefix}/map", f"{self._prefix}/tables"):
            held = await self._authority.get(key)
            if held is None:
                self._values.pop(key, None)
            else:
                self._values[key] = held

    async def _look(self, *, fresh: bool = False) -> None:
        """Judge etcd's map and tables, and go on with them where they go on from those known here.

        A watch brings each change on its way, which may lie behind what another node told: only what was read
        just now (`fresh`) can be told from a past that is gone.
        """
        held_map, held_tables = (self._values.get(f"{self._prefix}/{key}") for key in ("map", "tables"))
        looked_at = tuple(0 if held is None else held.revision for held in (held_map, held_tables))
        if looked_at == self._looked_at:
            return
        belief = self.belief
        if held_map is None and belief.map is None:
            return  # there is no cluster yet
        try:
            cluster_map = belief.map_in(held_map, cached=False)
            tables = belief.tables_in(held_tables, cached=False)
        except CorruptionError:  # of a newer version: it will not be read
            return
        except UnavailableError as error:
            if not fresh and not self.refusal:
                raise Compacted from None  # read all anew
            if str(error) != self.refusal:
                self._log.warning("etcd is not believed", reason=str(error))
            belief.refusal = str(error)
        else:
            if belief.map is None or cluster_map.epoch > belief.map.epoch:
                await self._adopt(cluster_map)
                belief.map = cluster_map
            belief.tables, belief.refusal = tables, ""
        self._looked_at = looked_at  # type: ignore[assignment]

    @property
    def _volumes_at(self) -> str:
        return f"{self._prefix}/volumes/"

    def _take_pages(self, pages: Mapping[str, bytes]) -> None:
        held = self._values.get(f"{self._prefix}/tables")
        by_number = {int(key.removeprefix(self._volumes_at)): raw for key, raw in pages.items()}
        self.belief.take_pages(by_number, 0 if held is None else decode_tables(held.data).serial)

    def _tell(self) -> None:
        self._look_at_twins()
        for listener in self._listeners:
            listener()

    async def _keep_lease(self) -> None:
        told = 0  # the lease that our sign of life hangs on
        while True:
            try:
                await self._lease.renew()
                if self._lease.id != told and await self._say_alive():
                    told = self._lease.id
                self.answers = True
            except UnavailableError:
                self.answers = False
            except Exception as error:  # noqa: BLE001
                self._log.fault("membership", error)
            await asyncio.sleep(self._pace.renew_s)

    async def _say_alive(self) -> bool:
        """Put this node's sign of life there, unless another life's is there; return whether it did."""
        if self.refusal:
            return False  # what is there may be of another cluster
        key, mine = f"{self._prefix}/live/{self._slot}", self._sign
        held = self._values.get(key)
        if held is not None and held.data != mine and _store_of(held.data) == _store_of(mine):
            now = asyncio.get_running_loop().time()
            self._met = self._met or now
            if now > self._met + LEASE_S + 2:  # longer than a lease of our last life may last
                reason = f"node {self._slot} lives twice: its data directory was copied"
                await self.change_all({f"twin/{self._slot}": held.data + b" " + mine}, {})
                self._on_twin(reason)
            return False
        self._met = 0.0
        put = Put(key, mine, self._lease.id)
        return bool(await self._authority.txn([put], held={key: held.revision if held else 0}))

    def _look_at_twins(self) -> None:
        held = self._values.get(f"{self._prefix}/twin/{self._slot}")
        if held is not None and not self.refusal and self._sign in held.data.split():
            self._on_twin(f"node {self._slot} lives twice: its data directory was copied")
