"""`kvmeta cluster`: who is in a cluster, what moves, and how to change that."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from kvmeta.cli import options, render
from kvmeta.cli.progress import progress_bar
from kvmeta.errors import InputError

if TYPE_CHECKING:
    from kvmeta.operators import Changed, Cluster, Recovery, Status

_LOOK_S = 0.5

_wait_option = click.option(
    "--wait/--no-wait", default=False, help="Return only when the moves are done, with a progress bar."
)
_force_option = click.option("--force", is_flag=True, help="Do it although it may cost copies.")


@click.group(short_help="See and change the nodes of a cluster.")
def cluster() -> None:
    """See and change the nodes of a cluster, through any of them.

    \b
    kvmeta cluster status --store kvmeta://localhost:7400
    kvmeta cluster drain n3 --wait
    """  # noqa: D301 - click looks for the backspace itself


def _open(store: str) -> Cluster:
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import kvmeta.operators

    return kvmeta.operators.open(store)


@cluster.command(short_help="How the cluster is.")
@options.store_option
@options.json_option
def status(store: str, as_json: bool) -> None:
    """Show the cluster: its map, its nodes, what moves and what is missing."""
    with _open(store) as opened:
        told = opened.status()
    if as_json:
        render.json_line(dataclasses.asdict(told))
        return
    figures = {key: value for key, value in dataclasses.asdict(told).items() if key != "members"}
    render.pairs(figures)
    click.echo()
    _show_nodes(told)


@cluster.command(short_help="The nodes, a line each.")
@options.store_option
@options.json_option
def nodes(store: str, as_json: bool) -> None:
    """Show the nodes: how they are, what they own, and the rows that wait for them on others as hints.

    "hints dropped": rows for others that a node could not keep since it started. `kvmeta cluster repair`
    brings them.
    """
    with _open(store) as opened:
        told = opened.status()
    if as_json:
        for member in told.members:
            render.json_line(dataclasses.asdict(member))
        return
    _show_nodes(told)


@cluster.command("map", short_help="Which nodes own which partitions.")
@options.store_option
@options.json_option
def show_map(store: str, as_json: bool) -> None:
    """Show the owners of all partitions: a line for each set of owners, with --json for each partition."""
    with _open(store) as opened:
        owners = opened.owners()
    if as_json:
        for partition, names in enumerate(owners):
            render.json_line({"partition": partition, "owners": names})
        return
    counted = Counter(", ".join(sorted(names)) for names in owners)
    render.table(["owners", "partitions"], [[names, render.count(n)] for names, n in sorted(counted.items())])


@cluster.command(short_help="How a node joins.")
@click.option(
    "--store", envvar="KVMETA_STORE", metavar="URL", help="A node of the cluster that it is to join."
)
@options.json_option
def join(store: str | None, as_json: bool) -> None:
    """Say how a node joins: it does so by itself when it is started.

    Every node of a cluster is started the same way; partitions move to it by themselves. With --store the
    command has the cluster's name; etcd's URL is what the other nodes were started with: they do not tell it.
    """
    name = None
    if store is not None:
        with _open(store) as opened:
            name = opened.status().name
    command = (
        f"kvmeta serve --data DIR --listen HOST:PORT --insecure --cluster {shlex.quote(name or 'NAME')} "
        "--etcd URL [--zone Z] [--weight W]"
    )
    if as_json:
        render.json_line({"cluster": name, "command": command})
        return
    click.echo(command)


@cluster.command(short_help="Move everything off a node, which then leaves.")
@click.argument("node")
@options.store_option
@_force_option
@_wait_option
@options.progress_option
@options.json_option
def drain(node: str, store: str, force: bool, wait: bool, progress: bool | None, as_json: bool) -> None:
    """Move everything off NODE while it serves; when that is done it is out of the cluster."""
    with _open(store) as opened:
        changed = opened.drain(node, force=force)
        _tell(opened, changed, f"draining {node}", wait, progress, as_json, leaving=node)


@cluster.command(short_help="Keep a node that is being drained.")
@click.argument("node")
@options.store_option
@_wait_option
@options.progress_option
@options.json_option
def undrain(node: str, store: str, wait: bool, progress: bool | None, as_json: bool) -> None:
    """Keep NODE, which is being drained; what has left comes back."""
    with _open(store) as opened:
        _tell(opened, opened.undrain(node), f"keeping {node}", wait, progress, as_json)


@cluster.command(short_help="Take out a node that is dead.")
@click.argument("node")
@options.store_option
@_force_option
@_wait_option
@options.progress_option
@options.json_option
def remove(node: str, store: str, force: bool, wait: bool, progress: bool | None, as_json: bool) -> None:
    """Take NODE, which is dead, out: the others copy what it held. It never comes back with its old data."""
    with _open(store) as opened:
        changed = opened.remove(node, force=force)
        _tell(opened, changed, f"removing {node}", wait, progress, as_json, leaving=node)


@cluster.command(short_help="Place all partitions anew.")
@options.store_option
@_wait_option
@options.progress_option
@options.json_option
def rebalance(store: str, wait: bool, progress: bool | None, as_json: bool) -> None:
    """Place all partitions over the nodes as they are now; most often nothing has to move."""
    with _open(store) as opened:
        _tell(opened, opened.rebalance(), "rebalancing", wait, progress, as_json)


@cluster.command(short_help="Change a node's share.")
@click.argument("node")
@click.argument("share", type=float)
@options.store_option
@_wait_option
@options.progress_option
@options.json_option
def weight(node: str, share: float, store: str, wait: bool, progress: bool | None, as_json: bool) -> None:
    """Give NODE another SHARE of the partitions, relative to others; start it with that weight next time."""
    with _open(store) as opened:
        _tell(opened, opened.set_weight(node, share), f"{node} has weight {share:g}", wait, progress, as_json)


@cluster.command(short_help="Compare all replicas now.")
@options.store_option
@click.option("--dataset", default="", help="Only this dataset.  [all]")
@options.progress_option
@options.json_option
def repair(store: str, dataset: str, progress: bool | None, as_json: bool) -> None:
    """Compare all replicas and send each what it lacks. The nodes do this now and then by themselves, too."""
    with _open(store) as opened, progress_bar("comparing", progress) as update:
        done = opened.repair(dataset, update)
    if as_json:
        render.json_line(dataclasses.asdict(done))
        return
    skipped = f", {render.count(done.skipped)} skipped, for an owner is away" if done.skipped else ""
    compared = render.count(done.partitions, "partition")
    if done.datasets > 1:
        each = (done.partitions + done.skipped) // done.datasets
        compared += f" ({render.count(each)} in each of {done.datasets} datasets)"
    click.echo(f"compared {compared}, sent {render.count(done.rows, 'row')}{skipped}")


@cluster.command(short_help="Put back what etcd has lost.")
@options.store_option
@click.option("--yes", is_flag=True, help="Do what is shown without asking.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@options.json_option
def recover(store: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Put map, datasets and volumes back into an etcd that was emptied or set back to an older state.

    They come from what the nodes remember, the newest of more than half of them. What will be done is shown
    first; with --json nothing is asked, and nothing is done without --yes.
    """
    with _open(store) as opened:
        told = opened.recover()
        if told.reason and not as_json:
            _show_recovery(told)
        if told.reason and not dry_run and (yes or (not as_json and click.confirm("Do this?"))):
            told = opened.recover(told.plan)
    if as_json:
        render.json_line({**dataclasses.asdict(told), "plan": f"{told.plan:016x}"})
    elif not told.reason:
        click.echo(f"etcd has lost nothing that is known here (epoch {told.epoch}); there is nothing to do")
    elif told.done:
        click.echo(f"done: epoch {told.epoch_new}")


def _show_recovery(told: Recovery) -> None:
    click.echo(told.reason)
    click.echo()
    silent = f", {', '.join(told.silent)} did not answer" if told.silent else ""
    there = f"epoch {told.epoch_there}" if told.epoch_there else "none"
    tables = f"serial {told.serial_there}" if told.serial_there else "none"
    render.pairs({
        "map": f"epoch {told.epoch}, as epoch {told.epoch_new}; in etcd: {there}",
        "members": f"{', '.join(told.members)}{silent}",
        "tables": f"serial {told.serial}; in etcd: {tables}",
        "datasets that come back": ", ".join(told.datasets_back) or "-",
        "datasets that only etcd has": ", ".join(told.datasets_gone) or "-",
        "volumes": render.count(told.volumes),
        "next numbers": f"dataset {told.next_dataset}, volume {told.next_volume}",
    })  # fmt: skip
    if told.strangers:
        click.echo(
            f"\nMembers that only etcd's map has: {', '.join(told.strangers)}. Stop them; they join anew "
            "with empty data directories."
        )


@cluster.command(short_help="What moves.")
@options.store_option
@_wait_option
@options.progress_option
@options.json_option
def moves(store: str, wait: bool, progress: bool | None, as_json: bool) -> None:
    """Show how many replicas are still to be copied, node by node; with --wait, until there are none."""
    with _open(store) as opened:
        if wait:
            _wait(opened, progress)
        told = opened.status()
    rows = [
        [member.name, member.incoming, render.count(member.rows_copied), member.leftover]
        for member in told.members
    ]
    if as_json:
        render.json_line({"moving": told.moving, "nodes": [
            {"name": m.name, "incoming": m.incoming, "rows_copied": m.rows_copied, "leftover": m.leftover}
            for m in told.members
        ]})  # fmt: skip
        return
    click.echo(f"{render.count(told.moving, 'partition')} of {render.count(told.partitions)} on the move")
    render.table(["node", "to copy", "rows copied", "to drop"], rows)


def _show_nodes(told: Status) -> None:
    titles = [
        "node",
        "address",
        "zone",
        "weight",
        "state",
        "owns",
        "to copy",
        "to drop",
        "rows waiting",
        "hints dropped",
        "damaged",
        "mended",
        "clock ms",
    ]
    rows: list[list[Any]] = []
    for member in told.members:
        state = member.state if member.answered else f"{member.state}, no answer"
        rows.append([
            member.name, member.address, member.zone or "-", f"{member.weight:g}", state, member.owned,
            member.incoming, member.leftover, render.count(member.waiting),
            render.count(member.hints_dropped), member.damaged, member.mended, member.clock_ms,
        ])  # fmt: skip
    render.table(titles, rows)


def _tell(
    opened: Cluster,
    changed: Changed,
    what: str,
    wait: bool,
    progress: bool | None,
    as_json: bool,
    *,
    leaving: str = "",
) -> None:
    if wait:
        _wait(opened, progress, epoch=changed.epoch, leaving=leaving)
    if as_json:
        render.json_line({**dataclasses.asdict(changed), "done": wait})
        return
    under_way = (
        "done" if wait else f"{render.count(changed.moves, 'replica')} to copy (kvmeta cluster moves --wait)"
    )
    click.echo(f"{what}: {under_way}, epoch {changed.epoch}")


def _wait(opened: Cluster, progress: bool | None, *, epoch: int = 0, leaving: str = "") -> None:
    """Wait until nothing moves, and `leaving` is gone, as a node sees it that has the map of `epoch`."""
    with progress_bar("moving", progress) as update:
        most = 0
        while True:
            told = opened.status()
            if told.epoch >= epoch:  # the node asked may not have heard of the change yet
                most = max(most, told.moving)
                states = {member.name: member.state for member in told.members}
                if states.get(leaving) == "active":
                    raise InputError(f"node {leaving!r} stays: it was undrained, or came anew, meanwhile")
                if not told.moving and leaving not in states:
                    return
                if update is not None:
                    update(most - told.moving, most)
            time.sleep(_LOOK_S)
