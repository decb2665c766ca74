"""`kvmeta index`: remember where the members of tar files lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvmeta.cli import options, render
from kvmeta.cli.progress import file_progress_bar

if TYPE_CHECKING:
    from kvmeta.sources.indexer import IdRule


@click.command(short_help="Register the files in tars.")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@options.store_option
@options.dataset_option
@click.option("--create-dataset", is_flag=True, help="Make the dataset if it does not exist.")
@click.option(
    "--id",
    "id_rule",
    type=click.Choice(["name", "path", "content"]),
    default="name",
    show_default=True,
    help="What a file's ID is: the key of its name in the tar, of <tar>/<name>, or a hash of its bytes.",
)
@click.option(
    "--tag", type=click.IntRange(0, 0xFFFFFFFF), default=0, show_default=True, help="A label of your own."
)
@click.option("--checksums/--no-checksums", default=True, help="Sum the files' bytes, or do not read them.")
@options.progress_option
@options.json_option
def index(
    sources: tuple[str, ...],
    store: str,
    dataset: str,
    create_dataset: bool,
    id_rule: IdRule,
    tag: int,
    checksums: bool,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Register every file in some tar files.

    SRC is a tar file, or a directory that is searched for *.tar. The store is made if it does not exist. The
    tars stay where they are and are read from there; running this again does no harm.

    The tars are read by this command and registered by their paths on this machine. With a server as the
    store, give the paths under which the machines that shall read the files find them too.

    What is not a regular file is skipped and counted: links, devices, pipes, sparse files. A leading "./" is
    removed from names. With --id path, <tar> is the path of the tar below the directory SRC, or its file name
    where SRC is the tar; two tars for which that is the same are refused.

    A damaged tar ends the run; the tars before it are registered all the same.
    """
    from kvmeta.sources import indexer

    indexer.tar_files(sources, id_rule)  # a mistyped source must not leave a new store behind
    with options.open_store(store, "a") as opened:
        if create_dataset and dataset not in opened.datasets():
            opened.create_dataset(dataset)
        with file_progress_bar("indexing", progress) as update:
            report = indexer.index(
                opened.dataset(dataset),
                opened.volumes,
                sources,
                id=id_rule,
                tag=tag,
                checksums=checksums,
                progress=update,
            )
    render.report(report, "indexed", "in", "tar", as_json=as_json)
