"""A server's life: open, warm, listen, answer, drain, close.

store opened and kernels warmed ── listening, health SERVING ── SIGTERM: health NOT_SERVING, new calls refused
with DRAINING, those under way end ── store closed
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import time
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from kvmeta.errors import UnavailableError
from kvmeta.protocol.calls import SERVICE
from kvmeta_server.admission import SHARE_OF_ONE, Admission
from kvmeta_server.answers import Answers
from kvmeta_server.cluster.node import ClusterNode
from kvmeta_server.cluster.store import CoordinatedStore
from kvmeta_server.config import Config
from kvmeta_server.jobs import Jobs
from kvmeta_server.lanes import Lane, Lanes
from kvmeta_server.logs import Log
from kvmeta_server.memory import keep_freed_memory
from kvmeta_server.service import Service
from kvmeta_server.warming import warm

_WINDOW_BYTES = 64 << 10  # of a stream
_DRAIN_STEP_S = 0.02
_GOODBYE_S = 0.5  # for answers on their way out when the last call is done
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """A store's server on the running event loop; `address` is where it listens once it has started."""

    def __init__(
        self,
        config: Config,
        store: EmbeddedStore | CoordinatedStore,
        log: Log,
        node: ClusterNode | None = None,
    ) -> None:
        threads, limits = config.threads, config.limits
        # A node's lookups wait for other nodes: more threads than cores.
        lookups = threads.lookup_count if node is None else max(threads.lookup_count, threads.write)
        self._config = config
        self._log = log
        self._lanes = Lanes(
            Lane("lookup", lookups, limits.calls_max),
            Lane("write", threads.write, limits.calls_max),
            Lane("other", threads.other, limits.calls_max),
        )
        self.admission = Admission(limits)
        self._jobs = Jobs(store if isinstance(store, EmbeddedStore) else store.local, limits.jobs_max, log)
        service = Service(Answers(store, limits), self._jobs, self._lanes, self.admission, limits, log)
        self._server = grpc.aio.server(options=channel_arguments(config))
        self._server.add_generic_rpc_handlers((service.handler(),))
        if node is not None:
            self._server.add_generic_rpc_handlers(service.node_handlers(node))
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.address = ""

    async def start(self) -> None:
        """Listen and answer."""
        self.address = _bind(self._server, self._config)
        await self._server.start()
        for name in (SERVICE, ""):
            await self._health.set(name, _SERVING)
        if self._config.insecure:
            message = "no TLS: everybody who reaches this address may read and write"
            self._log.warning("insecure", message=message)
        self._log.info("ready", address=self.address)

    async def stop(self) -> None:
        """Refuse new calls, let those under way and jobs end for up to `drain_s`, then stop."""
        self._log.info("draining", calls=self.admission.calls, jobs=self._jobs.running)
        await self._health.enter_graceful_shutdown()
        self.admission.drain()
        end = time.monotonic() + self._config.limits.drain_s
        while (self.admission.calls or self._jobs.running) and time.monotonic() < end:
            await asyncio.sleep(_DRAIN_STEP_S)
        if self.admission.calls or self._jobs.running:
            self._log.warning("cut off", calls=self.admission.calls, jobs=self._jobs.running)
        await self._server.stop(_GOODBYE_S)
        self._lanes.close(_GOODBYE_S)

    async def cut(self) -> None:
        """Break off everything at once, as a crash would."""
        await self._server.stop(None)
        self._lanes.close(_GOODBYE_S)


def serve(config: Config) -> None:
    """Serve the store until SIGTERM or SIGINT."""
    log = Log(config.log.format, config.log.level)
    keep_freed_memory()
    _raise_open_files()
    _refuse_taken_port(config)
    started = time.monotonic()
    options = EngineOptions(keep_tombstones=config.cluster is not None, probe=config.probe)
    with EmbeddedStore(config.data, options=options) as store:
        opened = time.monotonic()
        warm()
        log.info(
            "opened",
            data=str(store.engine.path),
            rows=store.stats().rows,
            open_s=round(opened - started, 3),
            warm_s=round(time.monotonic() - opened, 3),
        )
        _tell_damage(store, log)
        uvloop.run(_serve(config, store, log))
    log.info("closed")


def _tell_damage(store: EmbeddedStore, log: Log) -> None:
    """Tell of each segment that is known to be damaged."""
    for tree in store.engine.trees.values():
        for segment in tree.view.segments:
            pages = len(segment.damaged_pages())
            if segment.damage or pages:
                lost = segment.damage or f"{pages} of its pages cannot be read or are damaged"
                log.error("damaged", path=str(segment.path), dataset=tree.dataset.name, message=lost)


async def _serve(config: Config, store: EmbeddedStore, log: Log) -> None:
    stop = _stop_on_signals()
    if config.cluster is None:
        server = Server(config, store, log)
        await server.start()
        await stop.wait()
        await server.stop()
        return
    node = ClusterNode(config, store, log)
    try:
        await node.join()
        server = Server(config, node.store, log, node)
        await server.start()
        node.start()
        await stop.wait()
        await server.stop()
    finally:
        await node.stop()


def _stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; a second one ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def asked() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    return stop


def _raise_open_files() -> None:
    """Raise the soft limit of open files, often 1,024, to the hard one: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _refuse_taken_port(config: Config) -> None:
    """Raise UnavailableError where the address cannot be had: with the reason, before the store is opened."""
    host, port = config.host, config.listen.rpartition(":")[2]
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {config.listen}: {error.strerror}; --listen HOST:PORT names another address"
        ) from None


def _bind(server: Any, config: Config) -> str:
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {config.listen}: {error}; --listen HOST:PORT names another address"
        ) from None
    host = config.listen.rpartition(":")[0]
    return f"{host}:{port}"


def channel_arguments(config: Config) -> list[tuple[str, int]]:
    """Return gRPC's arguments for a server."""
    limits = config.limits
    arguments = [
        ("grpc.so_reuseport", 0),  # a second server on the port shall fail, not share it
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        # What bounds the calls of a connection whose messages never arrive: those are not admitted yet. Twice
        # its share, so that it is admission which refuses, with a reason.
        ("grpc.max_concurrent_streams", max(1, 2 * limits.calls_max // SHARE_OF_ONE)),
        # gRPC would let each stream send 4 MiB, and more, before anybody reads. So it is 64 KiB, and what a
        # message that is being read still lacks.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.keepalive_time_ms", 60_000),  # finds peers that went away without a word
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # 0: every ping is answered. A connection with too many gRPC would close when its answers have left,
        # and until then note each one more, with a copy of all its notes: a flood took all threads for long
        # after its end. Answers cost little, and gRPC reads no further where too many of them wait.
        ("grpc.http2.max_ping_strikes", 0),
    ]
    if limits.connection_idle_s:
        arguments.append(("grpc.max_connection_idle_ms", round(limits.connection_idle_s * 1000)))
    if limits.connection_age_s:
        arguments.append(("grpc.max_connection_age_ms", round(limits.connection_age_s * 1000)))
        arguments.append(("grpc.max_connection_age_grace_ms", round(limits.deadline_s * 1000)))
    return arguments
