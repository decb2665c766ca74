"""`kvmeta get`: where one file lies."""

from __future__ import annotations

import click

from kvmeta.cli import options, render, rows
from kvmeta.cli.failure import NOT_FOUND, Failure


@click.command(short_help="Tell where one file lies.")
@click.argument("key")
@click.option("--hex", "is_hex", is_flag=True, help="KEY is an ID of 32 hexadecimal digits, not a key.")
@options.store_option
@options.dataset_option
@options.json_option
def get(key: str, is_hex: bool, store: str, dataset: str, as_json: bool) -> None:
    """Tell where the file of one KEY lies; exit with 1 where it is not known.

    In JSON `version` is a string, because it exceeds 2**53, and `checksum` the 8 hexadecimal digits of the
    CRC-32C, 00000000 where it is not known.
    """
    from kvmeta.errors import NotFoundError
    from kvmeta.ids import ids_to_hex

    ids = options.ids_of((key,), is_hex)
    with options.open_store(store, "r") as opened:
        hit = opened.dataset(dataset).lookup(ids)
        if not hit.found[0]:
            raise Failure(f"no file {'with the ID' if is_hex else 'under the key'} {key!r}", NOT_FOUND)
        found = rows.entry(ids_to_hex(ids)[0], hit.locations[0].item(), int(hit.versions[0]))
        try:
            uri = opened.volumes.get(found["volume"]).uri
        except NotFoundError:
            uri = None
    if as_json:
        render.json_line({**found, "uri": uri})
        return
    del found["found"]
    found["volume"] = f"{found['volume']}  ({uri or 'not registered'})"
    if not int(found["checksum"], 16):
        found["checksum"] += "  (unknown)"
    render.pairs(found)
