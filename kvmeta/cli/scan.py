"""`kvmeta scan`: the entries of a dataset, all of them or a sample, in hash order."""

from __future__ import annotations

import re

import click

from kvmeta.cli import options, rows

_PAGE_ROWS = 65_536


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) of "i/n", one of n equal parts."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise click.BadParameter(
            f"{text!r} is not a part; write 0/8 for the first of eight, 7/8 for the last"
        )
    return int(match[1]), int(match[2])


@click.command(short_help="List entries, all or a sample.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    help="This share of the entries, e.g. 0.01: a random sample.",
)
@click.option("--tag", type=click.IntRange(0, 0xFFFFFFFF), help="Only entries with this tag.")
@click.option(
    "--shard", type=parse_shard, metavar="I/N", help="Only one of n equal parts of the dataset, e.g. 0/8."
)
@click.option("--limit", type=click.IntRange(min=0), help="Stop after so many entries.")
@options.store_option
@options.dataset_option
@options.json_option
def scan(
    sample: float | None,
    tag: int | None,
    shard: tuple[int, int] | None,
    limit: int | None,
    store: str,
    dataset: str,
    as_json: bool,
) -> None:
    """List the entries of a dataset, one a line, in the order of their hashes.

    In JSON `version` is a string, because it exceeds 2**53, and `checksum` the 8 hexadecimal digits of the
    CRC-32C, 00000000 where it is not known.
    """
    from kvmeta.ids import ids_to_hex

    filters = {"sample": sample, "tag": tag, "shard": shard}
    page_rows = _PAGE_ROWS if limit is None else max(1, min(limit, _PAGE_ROWS))
    left = limit
    with options.open_store(store, "r") as opened:
        pages = opened.dataset(dataset).scan(
            page_rows=page_rows, **{name: value for name, value in filters.items() if value is not None}
        )
        if not as_json:
            click.echo(rows.TITLES)
        if left == 0:
            return
        for page in pages:
            taken = len(page.ids) if left is None else min(left, len(page.ids))
            rows.echo_rows(
                ids_to_hex(page.ids[:taken]), page.locations[:taken], page.versions[:taken], as_json
            )
            if left is not None:
                left -= taken
                if left == 0:
                    return
