"""A cluster in this process, for tests: real nodes over a real etcd, on one event loop, quick to make."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from kvmeta.errors import EngineNotInstalledError, StorageFullError
from kvmeta_server import config
from kvmeta_server.cluster.seams import Pace
from kvmeta_server.cluster.world import ServedNode
from kvmeta_server.dev import DevEtcd, etcd_program, free_port
from kvmeta_server.logs import Log
from kvmeta_server.serving import Server

T = TypeVar("T")
_numbers = itertools.count()
QUICK = Pace(probe_s=0.05, step_s=0.02, hints_s=0.1, grace_s=0, mend_s=0.1, settled_s=0.5)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevEtcd]:
    """Give an etcd for all tests of a run."""
    try:
        etcd_program()
    except EngineNotInstalledError as error:
        pytest.skip(str(error))
    server = DevEtcd(tmp_path_factory.mktemp("etcd"))
    yield server
    server.stop()


class LocalNode:
    """A node of a `LocalCluster`."""

    def __init__(self, data: Path, chosen: config.Config, options: EngineOptions) -> None:
        self.data, self.config, self._options = data, chosen, options
        self.address = chosen.listen
        self.gone = False

    async def start(self) -> None:
        """Open the store, join, listen, take part."""
        self.local = EmbeddedStore(self.data, options=self._options)
        log = Log("text", os.environ.get("KVMETA_TEST_LOG", "error"))
        self.node = ServedNode(self.config, self.local, log, QUICK)
        try:
            await self.node.join()
        except BaseException:
            await self.node.stop()
            self.local.close()
            raise
        self.server = Server(self.config, self.node.backend, log, self.node)
        await self.server.start()
        self.node.start()

    async def vanish(self) -> None:
        """Break all connections and do nothing more."""
        self.gone = True
        await self.server.cut()
        await self.node.stop()

    async def stop(self) -> None:
        """Stop listening and taking part; close the store."""
        if not self.gone:
            await self.server.stop()
            await self.node.stop()
        with suppress(StorageFullError):
            await asyncio.to_thread(self.local.close)


class LocalCluster:
    """Nodes n1, n2, … of one cluster, in this process."""

    def __init__(
        self, path: Path, etcd: DevEtcd, options: EngineOptions | None = None, **settings: Any
    ) -> None:
        self.path, self.etcd = path, etcd
        self.name = f"test-{os.getpid()}-{next(_numbers)}"
        self._options = options or EngineOptions(keep_tombstones=True)
        self._settings = {"partitions": 16, "repair_interval_s": 3600, **settings}
        self.nodes: dict[str, LocalNode] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def target(self) -> str:
        """Return what clients open."""
        return f"kvmeta://{next(iter(self.nodes.values())).address}"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, run on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def start(self, name: str, **settings: Any) -> LocalNode:
        """Start a node, a new one or one that was stopped."""
        port = int(self.nodes[name].address.rpartition(":")[2]) if name in self.nodes else free_port()
        given = {"name": self.name, "etcd": self.etcd.url, "node": name, **self._settings, **settings}
        pairs = [
            f"{key.replace('__', '.') if '__' in key else f'cluster.{key}'}={value}"
            for key, value in given.items()
        ]
        flags = {"data": str(self.path / name), "listen": f"127.0.0.1:{port}"}
        node = LocalNode(self.path / name, config.load(None, {}, flags, pairs), self._options)
        self.run(node.start())
        self.nodes[name] = node
        return node

    def kill(self, name: str) -> None:
        """Let a node answer nobody from now on: its connections break, its lease is not kept."""
        self.run(self.nodes[name].vanish())

    def stop(self, name: str) -> None:
        """Stop a node; `start` starts it again."""
        self.run(self.nodes[name].stop())

    def settle(self, timeout_s: float = 30.0) -> None:
        """Wait until no partition moves and all nodes have the same map."""
        self.run(self._settle(timeout_s))

    async def _settle(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while True:
                maps = [node.node.membership.current for node in self.nodes.values()]
                same = len({each.epoch for each in maps}) == 1 and len(maps[0].members) == len(self.nodes)
                if same and not maps[0].unplaced.any():
                    return
                await asyncio.sleep(0.02)

    def close(self) -> None:
        """Stop everything."""
        for node in self.nodes.values():
            self.run(node.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def local_cluster(
    path: Path, etcd: DevEtcd, nodes: int = 3, options: EngineOptions | None = None, **settings: Any
) -> Iterator[LocalCluster]:
    """Give a settled cluster of some nodes."""
    cluster = LocalCluster(path, etcd, options, **settings)
    try:
        for number in range(nodes):
            cluster.start(f"n{number + 1}")
        cluster.settle()
        yield cluster
    finally:
        cluster.close()
