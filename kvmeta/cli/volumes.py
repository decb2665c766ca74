"""`kvmeta volumes`: the disks, archives and buckets that a store's locations point into."""

from __future__ import annotations

from typing import Any

import click

from kvmeta.cli import options, render
from kvmeta.cli.failure import NOT_FOUND, Failure
from kvmeta.volumes import CODECS, STATES


@click.group(short_help="List, add, move and retire volumes.")
def volumes() -> None:
    """List, add, move and retire volumes."""


@volumes.command("list")
@options.store_option
@options.json_option
def list_volumes(store: str, as_json: bool) -> None:
    """List the volumes of a store, and whether their files are on this machine.

    null or - stands for what is no local file.
    """
    with options.open_store(store, "r") as opened:
        known = [{**_shown(volume), "exists": _exists(volume.uri)} for volume in opened.volumes.list()]
    if as_json:
        for volume in known:
            render.json_line(volume)
    else:
        rows = [
            (
                each["number"],
                each["name"],
                each["state"],
                {True: "there", False: "missing", None: None}[each["exists"]],
                _size(each["size_bytes"]),
                each["codec"],
                each["uri"],
            )
            for each in known
        ]
        render.table(("NUMBER", "NAME", "STATE", "FILE", "SIZE", "CODEC", "URI"), rows)


@volumes.command()
@click.argument("uri")
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    default="raw",
    show_default=True,
    help="How each file in it is stored: as it is, or compressed by itself.",
)
@options.store_option
@options.json_option
def add(uri: str, codec: str, store: str, as_json: bool) -> None:
    """Register the volume at URI, a path on this machine or a file: URI, and print its number."""
    with options.open_store(store, "a", must_exist=True) as opened:
        volume = opened.volumes.add(uri, codec=codec)
        if as_json:
            render.json_line(_shown(volume))
        else:
            click.echo(int(volume))


@volumes.command()
@click.argument("volume", required=False)
@click.argument("new_uri", required=False)
@click.option(
    "--prefix",
    nargs=2,
    metavar="OLD NEW",
    help="Move every volume whose URI starts with OLD; where OLD is a path, every one in that directory.",
)
@click.option("--force", is_flag=True, help="Even where there is no file at the new place.")
@options.store_option
def move(
    volume: str | None, new_uri: str | None, prefix: tuple[str, str] | None, force: bool, store: str
) -> None:
    """Say that VOLUME (its number, URI or path) now lies at NEW_URI; its entries stay as they are.

    No file is moved: do that first.
    """
    if prefix is not None and volume is not None:
        raise click.UsageError("give VOLUME and NEW_URI, or --prefix, not both")
    if prefix is None and (volume is None or new_uri is None):
        raise click.UsageError("give VOLUME and NEW_URI, or --prefix OLD NEW")
    with options.open_store(store, "a", must_exist=True) as opened:
        if prefix is not None:
            moves = _moves_of_prefix(opened.volumes.list(), *prefix)
        else:
            assert volume is not None
            assert new_uri is not None
            moves = [(opened.volumes.get(int(volume) if volume.isdecimal() else volume), new_uri)]
        if not force:
            _refuse_missing([uri for _, uri in moves])
        moved = [opened.volumes.move(known, uri) for known, uri in moves]
    if prefix is not None:
        click.echo(f"moved {render.count(len(moved), 'volume')}")
    else:
        click.echo(f"volume {int(moved[0])} is now at {moved[0].uri}")


@volumes.command("set-state")
@click.argument("volume")
@click.argument("state", type=click.Choice(STATES))
@options.store_option
def set_state(volume: str, state: str, store: str) -> None:
    """Say that VOLUME (its number, URI or path) is online, offline for now, or retired for good.

    Files are read from online volumes only.
    """
    with options.open_store(store, "a", must_exist=True) as opened:
        known = opened.volumes.get(int(volume) if volume.isdecimal() else volume)
        opened.volumes.set_state(known, state)
    click.echo(f"volume {int(known)} is {state}")


def _moves_of_prefix(volumes: list[Any], old: str, new: str) -> list[tuple[Any, str]]:
    """Return (volume, its new URI) of each volume below `old`, a directory's path or the start of a URI."""
    from kvmeta.volumes import normal_uri

    is_path = "://" not in old
    start = normal_uri(old).rstrip("/") + "/" if is_path else old
    goal = new if "://" in new else normal_uri(new)
    if start.endswith("/") and not goal.endswith("/"):
        goal += "/"
    moves = [
        (volume, goal + volume.uri.removeprefix(start)) for volume in volumes if volume.uri.startswith(start)
    ]
    if not moves:
        raise Failure(f"no volume's URI starts with {start}; see kvmeta volumes list", NOT_FOUND)
    return moves


def _refuse_missing(uris: list[str]) -> None:
    from kvmeta.volumes import normal_uri

    missing = [uri for uri in uris if _exists(normal_uri(uri)) is False]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise Failure(
            f"{missing[0]}: no such file on this machine{more}; nothing was changed. "
            "Move the files first, or say --force",
            NOT_FOUND,
        )


def _exists(uri: str) -> bool | None:
    """Tell whether a volume's file is there; None for what is no local file."""
    from kvmeta.errors import UnsupportedError
    from kvmeta.volumes import local_path

    try:
        return local_path(uri).exists()
    except UnsupportedError:
        return None
    except OSError:  # in a directory that may not be looked into
        return False


def _shown(volume: Any) -> dict[str, Any]:
    return {
        "number": int(volume),
        "name": volume.name,
        "state": str(volume.state),
        "size_bytes": volume.size_bytes,
        "codec": volume.codec,
        "uri": volume.uri,
    }


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else render.size(size_bytes)
