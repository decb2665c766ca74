"""`kvmeta volumes`: the disks, archives and buckets that a store's locations point into."""

from __future__ import annotations

from typing import Any

import click

from kvmeta.cli import options, render


@click.group(short_help="List, add and move volumes.")
def volumes() -> None:
    """List, add and move volumes."""


@volumes.command("list")
@options.store_option
@options.json_option
def list_volumes(store: str, as_json: bool) -> None:
    """List the volumes of a store."""
    with options.open_store(store, "r") as opened:
        known = [_shown(volume) for volume in opened.volumes.list()]
    if as_json:
        for volume in known:
            render.json_line(volume)
    else:
        rows = [
            (each["number"], each["name"], each["state"], _size(each["size_bytes"]), each["uri"])
            for each in known
        ]
        render.table(("NUMBER", "NAME", "STATE", "SIZE", "URI"), rows)


@volumes.command()
@click.argument("uri")
@options.store_option
@options.json_option
def add(uri: str, store: str, as_json: bool) -> None:
    """Register the volume at URI, a path or a file: URI, and print its number."""
    with options.open_store(store, "a") as opened:
        volume = opened.volumes.add(uri)
        if as_json:
            render.json_line(_shown(volume))
        else:
            click.echo(int(volume))


@volumes.command()
@click.argument("volume")
@click.argument("new_uri")
@options.store_option
def move(volume: str, new_uri: str, store: str) -> None:
    """Say that VOLUME (its number or URI) now lies at NEW_URI; its entries stay as they are."""
    with options.open_store(store, "a", must_exist=True) as opened:
        known = opened.volumes.get(int(volume) if volume.isdecimal() else volume)
        moved = opened.volumes.move(known, new_uri)
    click.echo(f"volume {int(moved)} is now at {moved.uri}")


def _shown(volume: Any) -> dict[str, Any]:
    return {
        "number": int(volume),
        "name": volume.name,
        "state": str(volume.state),
        "size_bytes": volume.size_bytes,
        "uri": volume.uri,
    }


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else render.size(size_bytes)
