"""`kvmeta stat`, `verify` and `compact`: the store as a whole."""

from __future__ import annotations

import dataclasses
import time

import click

from kvmeta.cli import options, render
from kvmeta.cli.failure import DAMAGED
from kvmeta.cli.progress import progress_bar


@click.command(short_help="Show what a store holds and costs.")
@options.store_option
@options.json_option
def stat(store: str, as_json: bool) -> None:
    """Show how many entries a store has and what they cost."""
    with options.open_store(store, "r") as opened:
        figures = dataclasses.asdict(opened.stats())
    if as_json:
        render.json_line(figures)
    else:
        render.pairs(figures)


@click.command(short_help="Check every page of a store.")
@options.store_option
@options.progress_option
@options.json_option
def verify(store: str, progress: bool | None, as_json: bool) -> None:
    """Read every page of a store and check it; exit with 3 where one is damaged."""
    with options.open_store(store, "r") as opened, progress_bar("verifying", progress) as update:
        found = opened.verify(progress=update)
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
            {"ok": found.ok, "segments": found.segments, "pages": found.pages, "damages": damages}
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
@options.progress_option
def compact(store: str, progress: bool | None) -> None:
    """Merge a store's runs, so that lookups touch fewer of them and old entries give their space back."""
    started = time.monotonic()
    with (
        options.open_store(store, "a", must_exist=True) as opened,
        progress_bar("compacting", progress) as update,
    ):
        opened.compact(progress=update)
    click.echo(f"compacted in {time.monotonic() - started:.1f} s")
