"""A node of a cluster in production: a member over gRPC, etcd, files and threads, and the store it serves."""

from __future__ import annotations

import asyncio

from kvmeta.embedded import EmbeddedStore
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.etcd import Etcd, Tls
from kvmeta_server.cluster.member import Member
from kvmeta_server.cluster.seams import Pace, World
from kvmeta_server.cluster.store import CoordinatedStore
from kvmeta_server.cluster.tables import EtcdTables
from kvmeta_server.cluster.transport import GrpcWire
from kvmeta_server.config import Config
from kvmeta_server.lanes import Lane
from kvmeta_server.logs import Log


class ClusterNode(Member):
    """A node on the running event loop. `store` is there once it has joined."""

    store: CoordinatedStore
    tables: EtcdTables

    def __init__(self, config: Config, local: EmbeddedStore, log: Log, pace: Pace | None = None) -> None:
        assert config.cluster is not None
        settings = config.cluster
        self._local = local
        world = World(
            authority=Etcd(
                settings.etcd.split(","), Tls(settings.etcd_ca, settings.etcd_cert, settings.etcd_key)
            ),
            wire=GrpcWire(),
            disk=FileDisk(local.engine.path / "node"),
            reads=Lane("peer-read", max(4, config.threads.lookup_count)),
            writes=Lane("peer-write", config.threads.write),
            background=Lane("moves", 2),
            control=Lane("control", 2),
            log=log,
        )
        super().__init__(settings, local.engine, world, pace or Pace())

    async def join(self) -> None:
        """Become, or be again, a member; raise what keeps this node from it."""
        await super().join()
        loop = asyncio.get_running_loop()
        self.tables = EtcdTables(self.membership, lambda work: self.store.run(work), self.make_datasets)
        self.store = CoordinatedStore(
            self._local, self.replica, self.coordinator, self.membership, self.peers, self.tables, loop
        )
