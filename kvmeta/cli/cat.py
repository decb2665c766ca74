"""`kvmeta cat`: the bytes of files, to stdout."""

from __future__ import annotations

import sys

import click

from kvmeta.cli import options
from kvmeta.cli.failure import NOT_FOUND


@click.command(short_help="Write the bytes of files to stdout.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--hex", "are_hex", is_flag=True, help="Each KEY is an ID of 32 hexadecimal digits, not a key.")
@options.store_option
@options.dataset_option
def cat(keys: tuple[str, ...], are_hex: bool, store: str, dataset: str) -> None:
    """Write the bytes of the files of some KEYs to stdout, one after the other.

    Where one is not known the others are written all the same, and the command exits with 1.
    """
    ids = options.ids_of(keys, are_hex)
    out = sys.stdout.buffer
    missing = []
    with options.open_store(store, "r") as opened:
        entries = opened.dataset(dataset)
        for i, key in enumerate(keys):  # one at a time: a file may have 4 GiB
            content = entries.read(ids[i : i + 1])[0]
            if content is None:
                missing.append(key)
            else:
                out.write(content)
    out.flush()
    for key in missing:
        click.echo(f"kvmeta: no file {'with the ID' if are_hex else 'under the key'} {key!r}", err=True)
    if missing:
        click.get_current_context().exit(NOT_FOUND)
