"""A simulated etcd: one linearizable key space with revisions, leases and watches, sometimes out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from kvmeta.errors import UnavailableError
from kvmeta_server.cluster.seams import Changed, Compacted, Put, Value
from kvmeta_server.simulator.loop import Process
from kvmeta_server.simulator.network import Network

T = TypeVar("T")
HOST = "etcd"
CALL_S = 3.0


class Snapshot(NamedTuple):
    """What etcd held at a revision."""

    revision: int
    values: dict[str, Value]


@dataclass
class KeySpace:
    """What etcd holds. `changed` is called after each transaction."""

    now: Callable[[], float]
    changed: Callable[[str, bytes | None], None] = lambda key, data: None
    revision: int = 0
    compacted: int = 0
    lives: int = 1
    """How often etcd was started: another life may have another history."""
    values: dict[str, Value] = field(default_factory=dict)
    history: list[Changed] = field(default_factory=list)
    _granted: int = 0
    _leases: dict[int, tuple[float, int]] = field(default_factory=dict)  # its end, and for how long it is
    _held: dict[str, int] = field(default_factory=dict)  # keys that hang on a lease
    _waiting: list[Callable[[], None]] = field(default_factory=list)

    def txn(self, writes: Sequence[Put], held: dict[str, int]) -> int:
        """Run a transaction; see `seams.Authority.txn`."""
        self.expire()
        for key, revision in held.items():
            value = self.values.get(key)
            if (value.revision if value else 0) != revision:
                return 0
        if any(write.lease and write.lease not in self._leases for write in writes):
            raise UnavailableError("etcd: lease not found")
        self.revision += 1
        for write in writes:
            self._write(write)
        return self.revision

    def grant(self, ttl_s: int) -> int:
        """Return a new lease."""
        self.expire()
        self._granted += 1
        lease = self._granted
        self._leases[lease] = (self.now() + ttl_s, ttl_s)
        return lease

    def keep_alive(self, lease: int) -> int:
        """Renew a lease; return its seconds, 0 where it has ended."""
        self.expire()
        if lease not in self._leases:
            return 0
        ttl_s = self._leases[lease][1]
        self._leases[lease] = (self.now() + ttl_s, ttl_s)
        return ttl_s

    def revoke(self, lease: int) -> None:
        """End a lease and its keys."""
        if self._leases.pop(lease, None) is not None:
            gone = [key for key, holder in self._held.items() if holder == lease]
            if gone:
                self.revision += 1
            for key in gone:
                self._write(Put(key, None))

    def expire(self) -> None:
        """End the leases whose time is up."""
        now = self.now()
        for lease in [lease for lease, (end, _) in self._leases.items() if end <= now]:
            self.revoke(lease)

    def tell_next(self, notice: Callable[[], None]) -> None:
        """Call `notice` after the next change."""
        self._waiting.append(notice)

    def compact(self) -> None:
        """Forget the history."""
        self.history.clear()
        self.compacted = self.revision

    def snapshot(self) -> Snapshot:
        """Return what it holds now, without what hangs on a lease."""
        return Snapshot(
            self.revision, {key: value for key, value in self.values.items() if key not in self._held}
        )

    def is_as(self, snapshot: Snapshot) -> bool:
        """Return whether it holds what it held then, but for what hangs on a lease."""
        return self.snapshot().values == snapshot.values

    def restore(self, snapshot: Snapshot | None) -> None:
        """Go back to a snapshot, or begin with nothing: all leases end, and nothing here tells of it."""
        revision, values = snapshot or Snapshot(0, {})
        self.lives += 1
        self._leases.clear()
        self._held.clear()
        self.history.clear()
        self.revision = self.compacted = revision
        self.values = dict(values)
        waiting, self._waiting = self._waiting, []
        for notice in waiting:
            notice()

    def _write(self, write: Put) -> None:
        key = write.key
        self._held.pop(key, None)
        if write.data is None:
            if self.values.pop(key, None) is None:
                return
        else:
            self.values[key] = Value(key, write.data, self.revision)
            if write.lease:
                self._held[key] = write.lease
        self.history.append(Changed(key, write.data, self.revision))
        waiting, self._waiting = self._waiting, []
        for notice in waiting:
            notice()
        self.changed(key, write.data)


class SimulatedEtcd:
    """A process's connection to the key space, over the network: `seams.Authority`."""

    url = HOST

    def __init__(self, space: KeySpace, network: Network, process: Process) -> None:
        self._space = space
        self._network = network
        self._process = process

    async def get(self, key: str) -> Value | None:
        """Return a key's value, or None."""
        values, _ = await self._ask(lambda: self._below(key))
        return next((value for value in values if value.key == key), None)

    async def below(self, prefix: str) -> tuple[list[Value], int]:
        """Return all values below a prefix, and the revision that they are of."""
        return await self._ask(lambda: self._below(prefix))

    async def txn(self, writes: Sequence[Put], *, held: dict[str, int]) -> int:
        """Make all writes if the keys of `held` have these revisions; return the revision made, or 0."""
        return await self._ask(lambda: self._space.txn(writes, held))

    async def grant(self, ttl_s: int) -> int:
        """Return a new lease."""
        return await self._ask(lambda: self._space.grant(ttl_s))

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease."""
        return await self._ask(lambda: self._space.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """End a lease."""
        await self._ask(lambda: self._space.revoke(lease))

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Changed]]:
        """Yield all changes below a prefix after `revision`, none at first; or raise Compacted."""
        space = self._space
        life = space.lives
        if space.revision < revision:
            raise Compacted
        yield []
        while True:
            if space.lives != life:
                raise Compacted
            if revision >= space.revision:
                await self._news()
            await asyncio.sleep(0.1 + 1.4 * self._network.rng.random())
            if not self._network.passes(HOST, self._process.name):
                continue
            space.expire()
            if revision < space.compacted:
                raise Compacted
            news = [change for change in space.history if change.revision > revision]
            if news:
                revision = news[-1].revision
                yield [change for change in news if change.key.startswith(prefix)]

    async def _news(self) -> None:
        """Return after the next change; a timer of this process, so that a paused one hears of it later."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Future[None] = loop.create_future()

        def hear() -> None:
            if not heard.done():
                heard.set_result(None)

        def notice() -> None:
            loop.call_later(0, hear, context=self._process.context)

        self._space.tell_next(notice)
        await heard

    async def close(self) -> None:
        """Do nothing."""

    def _below(self, prefix: str) -> tuple[list[Value], int]:
        self._space.expire()
        held = [value for key, value in sorted(self._space.values.items()) if key.startswith(prefix)]
        return held, self._space.revision

    async def _ask(self, work: Callable[[], T]) -> T:
        """Return what `work` returns there; where the way back is cut, it is done and nobody hears of it."""
        if self._network.passes(self._process.name, HOST):
            await asyncio.sleep(self._network.delay())
            result = work()
            if self._network.passes(HOST, self._process.name):
                await asyncio.sleep(self._network.delay())
                return result
        await asyncio.sleep(CALL_S)
        raise UnavailableError("etcd does not answer: no answer in time")
