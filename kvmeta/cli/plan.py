"""`kvmeta plan`: how many machines a catalogue needs, from measured figures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import click

from kvmeta.cli import options, render

_DAY_S, _HOUR_S, _MINUTE_S = 86_400, 3600, 60


def _number(_: click.Context, __: click.Parameter, text: str | float) -> float:
    """Return a number as people write large ones: 20e9, 20_000_000_000."""
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number; write 20e9 or 20_000_000_000") from None


def _size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    return None if text is None else options.parse_size(text)


@click.command(short_help="How many machines a catalogue needs.")
@click.option(
    "--files", callback=_number, metavar="N", required=True, help="Files to be remembered, such as 20e9."
)
@click.option("--replicas", type=int, default=3, show_default=True, help="Nodes that hold each of them.")
@click.option(
    "--lookups-per-s", callback=_number, metavar="N", default="0", help="IDs looked up a second, in batches."
)
@click.option(
    "--puts-per-s", callback=_number, metavar="N", default="0", help="Entries put a second, in batches."
)
@click.option(
    "--disk", "disk_bytes", callback=_size, metavar="SIZE", help="Disk of one node, such as 3.6TiB."
)
@click.option(
    "--memory", "memory_bytes", callback=_size, metavar="SIZE", help="Memory of one node, such as 256GiB."
)
@options.json_option
def plan(as_json: bool, files: float, **asked: Any) -> None:
    """Print nodes, disk, memory, restart and rebuild time for a catalogue, and how they come about.

    The figures are those measured on one small machine with the client on it. Where a node's share does not
    fit into --memory, or no memory is named, a lookup is counted as one read of its disk.
    """
    from kvmeta.cli import planning

    measured = planning.measured()
    demand = planning.Demand(files=_whole(files), **asked)
    needed = planning.plan(demand, measured)
    if as_json:
        values = dataclasses.asdict(needed)
        render.json_line(
            {**values, "demand": dataclasses.asdict(demand), "measured": dataclasses.asdict(measured)}
        )
        return
    rows = [(each.name, each.arithmetic, _told(each.value, each.unit)) for each in needed.steps]
    render.table(("", "from", "so"), rows)
    click.echo("")
    click.echo(f"{render.count(needed.nodes, 'node')}, each with at least")
    disk = _told(needed.disk_bytes_per_node / planning.DISK_FILL, "bytes")
    click.echo(f"  {disk} of disk, {planning.DISK_FILL:.0%} full")
    click.echo(f"  {_told(needed.memory_bytes_per_node, 'bytes')} of memory for the process")
    cache = _told(needed.page_cache_bytes_per_node, "bytes")
    held = "counted on here" if needed.warm else "not counted on here"
    click.echo(f"  {cache} of page cache for lookups without device reads ({held})")
    click.echo(
        f"restart in {_told(needed.restart_s, 's')}, a lost node rebuilt in {_told(needed.rebuild_s, 's')}"
    )
    click.echo(f"measured with {render.count(measured.entries)} entries, {measured.date}, {measured.machine}")


def _whole(files: float) -> int:
    return int(files) if math.isfinite(files) else -1  # refused like any other number below 1


def _told(value: float, unit: str) -> str:
    if unit == "bytes":
        return render.size(math.ceil(value))
    if unit != "s":
        return f"{value:,.0f} {unit}"
    for length, name in ((_DAY_S, "days"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if value >= 2 * length:
            return f"{value / length:.2g} {name}"
    return f"{value:.2g} s"
