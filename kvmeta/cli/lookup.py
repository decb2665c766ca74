"""`kvmeta lookup`: where many files lie, asked by a file or a stream of IDs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

import click

from kvmeta.cli import options, render, rows
from kvmeta.cli.failure import DAMAGED, NOT_FOUND

if TYPE_CHECKING:
    from kvmeta.ids import IdArray

    _Batch = tuple[IdArray, list[bytes] | None]  # the keys where it was keys that were asked for

_BATCH_ROWS = 65_536
_ID_BYTES = 16


@click.command(short_help="Tell where many files lie.")
@click.option(
    "--ids", "source", type=click.File("rb"), required=True, metavar="FILE", help="The IDs; - is stdin."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["raw", "hex", "key"]),
    default="raw",
    show_default=True,
    help="raw: 16 bytes each, back to back. hex: 32 digits a line. key: a key a line, hashed to its ID.",
)
@options.store_option
@options.dataset_option
@options.json_option
def lookup(source: BinaryIO, form: str, store: str, dataset: str, as_json: bool) -> None:
    """Tell where many files lie, one line an ID, in the order asked.

    Exits with 1 where some are not known, with 3 where damage keeps some from being answered. Blank lines of
    hex and keys are skipped; keys are shown with their answers.

    In JSON `version` is a string, because it exceeds 2**53, and `checksum` the 8 hexadecimal digits of the
    CRC-32C, 00000000 where it is not known.
    """
    from kvmeta.ids import ids_to_hex

    if form == "raw":
        _refuse_odd_size(source)
    asked = found = failed = 0
    with options.open_store(store, "r") as opened:
        entries = opened.dataset(dataset)
        if not as_json:
            click.echo(f"{rows.TITLES}  KEY" if form == "key" else rows.TITLES)
        for ids, keys in _batches(source, form):
            hit = entries.lookup(ids, on_error="mask")
            states = [
                "damaged" if bad else "found" if good else "absent"
                for bad, good in zip(hit.failed.tolist(), hit.found.tolist(), strict=True)
            ]
            rows.echo_rows(ids_to_hex(ids), hit.locations, hit.versions, as_json, states, keys)
            asked += len(states)
            found += states.count("found")
            failed += states.count("damaged")
    told = f", {render.count(failed)} unanswered because of damage" if failed else ""
    click.echo(f"found {render.count(found)} of {render.count(asked)}{told}", err=True)
    if failed or found < asked:
        click.get_current_context().exit(DAMAGED if failed else NOT_FOUND)


def _refuse_odd_size(source: BinaryIO) -> None:
    """Refuse a file that cannot be raw IDs; of a pipe that is known only at its end."""
    from kvmeta.errors import InputError

    try:
        status = os.fstat(source.fileno())
        left = status.st_size - source.tell() if stat.S_ISREG(status.st_mode) else 0
    except OSError:  # not a file of the system, or one without a position
        return
    if left % _ID_BYTES:
        raise InputError(
            f"{source.name} has {left:,} bytes, which is no multiple of the 16 of a raw ID; "
            "for text say --format key or --format hex"
        )


def _batches(source: BinaryIO, form: str) -> Iterator[_Batch]:
    if form == "raw":
        return ((ids, None) for ids in _raw_batches(source))
    return _line_batches(source, form)


def _raw_batches(source: BinaryIO) -> Iterator[IdArray]:
    import numpy as np

    from kvmeta.errors import InputError
    from kvmeta.ids import ID

    held = b""
    while piece := source.read(_BATCH_ROWS * _ID_BYTES):
        held += piece
        whole = len(held) // _ID_BYTES * _ID_BYTES
        if whole:
            yield np.frombuffer(held[:whole], ID)
        held = held[whole:]
    if held:
        raise InputError(
            f"the IDs end with {len(held)} bytes of an ID; a raw ID has 16; for text say --format key or hex"
        )


def _line_batches(source: BinaryIO, form: str) -> Iterator[_Batch]:
    from kvmeta.ids import ids_from_hex, ids_from_keys

    while lines := list(islice(source, _BATCH_ROWS)):
        if form == "key":
            keys = [line.removesuffix(b"\n").removesuffix(b"\r") for line in lines]
            keys = [key for key in keys if key]
            yield ids_from_keys(keys), keys
        else:
            texts = [line.strip().decode("ascii", "replace") for line in lines]
            yield ids_from_hex([text for text in texts if text]), None
