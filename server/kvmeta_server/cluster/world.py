"""The world of a node in production: gRPC, etcd, files and threads. And the node in it, which serves."""

from __future__ import annotations

from kvmeta.embedded import EmbeddedStore
from kvmeta.transport import grpc
from kvmeta_server.cluster.backend import ClusterBackend
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.etcd import Etcd, Tls
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.seams import Pace, World
from kvmeta_server.config import ClusterSettings, Config
from kvmeta_server.lanes import Lane
from kvmeta_server.logs import Log


def production(config: Config, settings: ClusterSettings, local: EmbeddedStore, log: Log) -> World:
    """Return the world of a node on the running event loop."""
    tls = Tls(settings.etcd_ca, settings.etcd_cert, settings.etcd_key)
    return World(
        authority=Etcd(settings.etcd.split(","), tls),
        wire=grpc.Awaited(grpc.PEER_ARGUMENTS),
        disk=FileDisk(local.engine.path / "node"),
        reads=Lane("peer-read", max(4, config.threads.lookup_count)),
        writes=Lane("peer-write", config.threads.write),
        background=Lane("moves", 2),
        control=Lane("control", 2),
        log=log,
    )


class ServedNode(Node):
    """A node in production. `backend` is there once it has joined."""

    backend: ClusterBackend

    def __init__(self, config: Config, local: EmbeddedStore, log: Log, pace: Pace | None = None) -> None:
        assert config.cluster is not None
        self._local = local
        world = production(config, config.cluster, local, log)
        super().__init__(config.cluster, local.engine, world, pace or Pace())

    async def join(self) -> None:
        """Become, or be again, a member; raise what keeps this node from it."""
        await super().join()
        self.backend = ClusterBackend(self._local, self, self._world.reads, self._world.writes)
