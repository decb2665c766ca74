"""`kvmeta stat`, `verify` and `compact`: the store as a whole."""

from __future__ import annotations

import dataclasses
import time

import click

from kvmeta.cli import options, render
from kvmeta.cli.failure import DAMAGED, USAGE, Failure
from kvmeta.cli.progress import progress_bar

_LABELS = {"rows": "stored versions"}


@click.command(short_help="Show what a store holds and costs.")
@options.store_option
@options.json_option
def stat(store: str, as_json: bool) -> None:
    """Show how many entries a store has and what they cost.

    Stored versions count replaced entries until they are merged away; memtable rows are in the log. Of a
    server also its address and version are shown, and whether it refuses writes; the path is on its machine.
    """
    with options.open_store(store, "r") as opened:
        figures = dataclasses.asdict(opened.stats())
        if options.is_server(store):
            connection = opened.connection
            figures = {
                "server": ",".join(connection.router.seeds),
                "version": connection.limits().version,
                **figures,
            }
        else:
            del figures["read_only"]  # this handle is, whatever the store
    if as_json:
        render.json_line(figures)
    else:
        datasets = [
            {_LABELS.get(name, name): value for name, value in each.items()} for each in figures["datasets"]
        ]
        render.pairs({**figures, "datasets": datasets})


@click.command(short_help="Check every page of a store.")
@options.store_option
@options.progress_option
@options.json_option
def verify(store: str, progress: bool | None, as_json: bool) -> None:
    """Read every page of a store and check it; exit with 3 where one is damaged.

    A server does this itself, as a job, and goes on with it if the command is interrupted.
    """
    with (
        options.open_store(store, "r", probe=True) as opened,
        progress_bar("verifying", progress) as update,
        options.told_that_it_goes_on(store),
    ):
        found = opened.verify(progress=update)
        in_log = sum(each.memtable_rows for each in opened.stats().datasets)
    damages = [
        {
            "path": str(each.path),
            "dataset": each.dataset,
            "page": each.page,
            "first": None if each.first is None else f"{each.first:032x}",
            "last": None if each.last is None else f"{each.last:032x}",
            "reason": each.reason,
        }
        for each in found.damages
    ]
    if as_json:
        render.json_line(
            {
                "ok": found.ok,
                "segments": found.segments,
                "pages": found.pages,
                "log_entries": in_log,
                "damages": damages,
            }
        )
    elif found.ok and not found.segments and in_log:
        click.echo(
            f"ok: 0 pages of 0 segments read; {render.count(in_log, 'entry', 'entries')} "
            f"{'is' if in_log == 1 else 'are'} in the log, which was checked when it was opened"
        )
    else:
        click.echo(
            f"{'ok' if found.ok else 'DAMAGED'}: {render.count(found.pages, 'page')} of "
            f"{render.count(found.segments, 'segment')} read, {render.count(len(damages), 'damage')}"
        )
        if damages:
            titles = ("PATH", "DATASET", "PAGE", "FIRST MIXED ID", "LAST MIXED ID", "REASON")
            render.table(titles, [tuple(each.values()) for each in damages])
    if not found.ok:
        click.get_current_context().exit(DAMAGED)


@click.command(short_help="Merge a store's runs.")
@options.store_option
@click.option(
    "--discard-damaged",
    is_flag=True,
    help="Drop what is damaged: its entries are lost, and an ID whose newest entry was among them may answer "
    "with an older one, even a deleted one.",
)
@click.option("--yes", is_flag=True, help="Do not ask whether to discard.")
@options.progress_option
@options.json_option
def compact(store: str, discard_damaged: bool, yes: bool, progress: bool | None, as_json: bool) -> None:
    """Merge a store's runs, so that lookups touch fewer of them and old entries give their space back.

    Damaged runs are left as they are; the command exits with 3 where there are some.

    A server does this itself, as a job, and goes on with it if the command is interrupted.
    """
    if (
        discard_damaged
        and not yes
        and not click.confirm(f"Drop the damaged parts of {store}? Their entries are lost", err=True)
    ):
        raise Failure("not confirmed; nothing was done", USAGE)
    started = time.monotonic()
    with (
        options.open_store(store, "a", must_exist=True, probe=discard_damaged) as opened,
        progress_bar("compacting", progress) as update,
        options.told_that_it_goes_on(store),
    ):
        opened.compact(discard_damaged=discard_damaged, progress=update)
        left = sum(each.quarantined_runs for each in opened.stats().datasets)
    seconds = time.monotonic() - started
    if as_json:
        render.json_line({"seconds": seconds, "quarantined_runs": left})
    else:
        click.echo(f"compacted in {seconds:.1f} s")
    if left:
        were_left = "was left as it is" if left == 1 else "were left as they are"
        click.echo(f"{render.count(left, 'damaged run')} {were_left}; see kvmeta verify", err=True)
        click.get_current_context().exit(DAMAGED)
