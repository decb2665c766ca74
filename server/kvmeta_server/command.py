"""`kvmeta serve`: the server, from the command line.

As light as the other commands to import: `kvmeta --help` reads its help from here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvmeta_server.config import Config
    from kvmeta_server.logs import Log

_NEEDS = ("grpc_health", "grpc_reflection", "msgspec", "structlog", "uvloop", "numba", "rocksdict")
_EPILOG = (
    "Settings: docs/operating.md. Later ones win: the file, KVMETA_SERVE_… variables, --set, the other flags."
)


@click.command(short_help="Serve a store to clients over gRPC.", epilog=_EPILOG)
@click.option("--data", metavar="DIR", help="The store's directory; made if missing.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.  [127.0.0.1:7400]"
)
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings, such as kvmeta.toml.",
)
@click.option("--insecure", is_flag=True, default=None, help="Listen where others reach it, without TLS.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="The log on stderr.  [text]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
@click.option("--cluster", metavar="NAME", help="Be a node of this cluster; the first node founds it.")
@click.option("--etcd", metavar="URL,…", help="The cluster's etcd.  [http://127.0.0.1:2379]")
@click.option("--node", metavar="NAME", help="This node's name.  [HOST-PORT]")
@click.option("--advertise", metavar="HOST:PORT", help="Where nodes and clients reach this node.  [--listen]")
@click.option("--zone", metavar="ZONE", help="What fails together: replicas lie in distinct zones.")
@click.option("--weight", type=float, metavar="W", help="This node's share, relative to others.  [1]")
@click.option(
    "--supervise",
    is_flag=True,
    help="Start the server again, without what cannot be read, where a read error of the disk ends it.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, such as limits.calls_max=512."
)
def serve(
    data: str | None,
    listen: str | None,
    file: Path | None,
    insecure: bool | None,
    log_format: str | None,
    log_level: str | None,
    cluster: str | None,
    etcd: str | None,
    node: str | None,
    advertise: str | None,
    zone: str | None,
    weight: float | None,
    supervise: bool,
    settings: tuple[str, ...],
) -> None:
    """Serve the store in DIR until SIGTERM, then let calls under way end.

    \b
    kvmeta serve --data catalog
    kvmeta lookup --store kvmeta://localhost:7400 --ids ids.bin
    kvmeta serve --data n1 --listen 10.0.0.1:7400 --insecure --cluster prod --etcd http://10.0.0.9:2379

    Ready when the log says so, and when the gRPC health service says SERVING.
    """  # noqa: D301 - click looks for the backspace itself
    _refuse_without_packages()
    # gRPC's own lines on stderr are of no form that a reader of the log knows.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kvmeta_server import config

    flags = {
        "data": data,
        "listen": listen,
        "insecure": insecure,
        "log.format": log_format,
        "log.level": log_level,
        "cluster.name": cluster,
        "cluster.etcd": etcd,
        "cluster.node": node,
        "cluster.advertise": advertise,
        "cluster.zone": zone,
        "cluster.weight": weight,
    }
    _serve(config.load(file, os.environ, flags, settings), supervise=supervise)


def _serve(config: Config, *, supervise: bool) -> None:
    from kvmeta_server import logs

    log = logs.Log(config.log.format, config.log.level)
    logs.gather(log)
    if supervise:
        import msgspec

        from kvmeta_server import supervisor

        if supervisor.supervise(log):
            config = msgspec.structs.replace(config, probe=True)
    _serve_here(config, log)


def _serve_here(config: Config, log: Log) -> None:
    from kvmeta import __version__, compiling
    from kvmeta.cli.failure import failure_of
    from kvmeta_server import serving  # in a supervised child: a fork must come before the threads of this

    try:
        with _ended_by_sigterm():
            compiling.tell_by(lambda words: log.info("compiling", message=words))
            log.info("starting", version=__version__, data=config.data, listen=config.listen, pid=os.getpid())
            serving.serve(config)
    except Exception as error:
        if config.log.format == "text":
            raise
        failure = failure_of(error)  # a reader of JSON shall find the reason in JSON
        log.error("failed", message=failure.message, exit_code=failure.exit_code)
        click.get_current_context().exit(failure.exit_code)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block in order while no event loop has taken the signal over: at the start."""

    def end(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_without_packages() -> None:
    from kvmeta.errors import EngineNotInstalledError

    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise EngineNotInstalledError(
            f'kvmeta serve needs {", ".join(missing)}; run: pip install "kvmeta[server]"'
        )
