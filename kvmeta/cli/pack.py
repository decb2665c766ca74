"""`kvmeta pack`: directories of small files into tar shards."""

from __future__ import annotations

import click

from kvmeta.cli import options, render
from kvmeta.cli.progress import file_progress_bar


@click.command(short_help="Pack directories into tar shards.")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--into", required=True, metavar="SHARDS", help="The directory of the shards, made if missing.")
@click.option(
    "--shard-bytes",
    type=options.parse_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="Close a shard before it grows beyond.",
)
@click.option(
    "--name", default="shard", show_default=True, help="Shards are called NAME-000000.tar and so on."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace shards of the same name; old ones beyond the last number written are removed.",
)
@click.option("--skip-unreadable", is_flag=True, help="Count what cannot be read instead of stopping.")
@options.progress_option
@options.json_option
def pack(
    directories: tuple[str, ...],
    into: str,
    shard_bytes: int,
    name: str,
    overwrite: bool,
    skip_unreadable: bool,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Pack directories of small files into tar shards.

    A member is named <directory name>/<path below it>. Symbolic links are not followed. A shard appears under
    its name only when it is whole.
    """
    from kvmeta.sources import packer

    with file_progress_bar("packing", progress) as update:
        report = packer.pack(
            directories,
            into,
            shard_bytes=shard_bytes,
            name=name,
            overwrite=overwrite,
            skip_unreadable=skip_unreadable,
            progress=update,
        )
    render.report(report, "packed", "into", "shard", as_json=as_json)
