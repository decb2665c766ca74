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
from functools import partial

import uvloop

from kvmeta import __version__
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from kvmeta.errors import UnavailableError
from kvmeta.protocol.status import TWIN
from kvmeta_server.admission import Admission
from kvmeta_server.answers import Answers
from kvmeta_server.backend import Backend, LocalBackend
from kvmeta_server.cluster.operators import Operators
from kvmeta_server.cluster.world import ServedNode
from kvmeta_server.config import Config
from kvmeta_server.jobs import Jobs
from kvmeta_server.lanes import Lane, Lanes
from kvmeta_server.listening.grpc import GrpcListener
from kvmeta_server.logs import Log
from kvmeta_server.memory import keep_freed_memory
from kvmeta_server.service import Endpoint, Service
from kvmeta_server.warming import warm

_DRAIN_STEP_S = 0.02
_GOODBYE_S = 0.5  # for answers on their way out when the last call is done


class Server:
    """A backend's server on the running event loop; `address` is where it listens once it has started."""

    def __init__(self, config: Config, backend: Backend, log: Log, node: ServedNode | None = None) -> None:
        threads, limits = config.threads, config.limits
        self._config = config
        self._log = log
        self._lanes = Lanes(
            Lane("lookup", threads.lookup_count, limits.calls_max),
            Lane("write", threads.write, limits.calls_max),
            Lane("other", threads.other, limits.calls_max),
        )
        self.admission = Admission(limits)
        self._jobs = Jobs(backend.local, limits.jobs_max, log)
        service = Service(self._lanes, self.admission, limits, log)
        endpoints: list[Endpoint] = service.of_store(
            Answers(backend, limits, __version__), self._jobs, waits=backend.waits
        )
        if node is not None:
            node.parties.when_fenced.append(partial(self.admission.refuse, TWIN))
            operators = Operators(node, node.backend.store.local_name)
            endpoints += service.of_node(node.answers, operators)
        self._listener = GrpcListener(config, endpoints)

    @property
    def address(self) -> str:
        """Return HOST:PORT."""
        return self._listener.address

    async def start(self) -> None:
        """Listen and answer."""
        await self._listener.start()
        if self._config.insecure:
            message = "no TLS: everybody who reaches this address may read and write"
            self._log.warning("insecure", message=message)
        self._log.info("ready", address=self.address)

    async def stop(self) -> None:
        """Refuse new calls, let those under way and jobs end for up to `drain_s`, then stop."""
        self._log.info("draining", calls=self.admission.calls, jobs=self._jobs.running)
        await self._listener.say_goodbye()
        self.admission.drain()
        end = time.monotonic() + self._config.limits.drain_s
        while (self.admission.calls or self._jobs.running) and time.monotonic() < end:
            await asyncio.sleep(_DRAIN_STEP_S)
        if self.admission.calls or self._jobs.running:
            self._log.warning("cut off", calls=self.admission.calls, jobs=self._jobs.running)
        await self._listener.stop(_GOODBYE_S)
        self._lanes.close(_GOODBYE_S)

    async def cut(self) -> None:
        """Break off everything at once, as a crash would."""
        await self._listener.stop(None)
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
        server = Server(config, LocalBackend(store), log)
        await server.start()
        await stop.wait()
        await server.stop()
        return
    node = ServedNode(config, store, log)
    try:
        await node.join()
        server = Server(config, node.backend, log, node)
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
