"""The options that several commands share, and how the store they name is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kvmeta.ids import IdArray

_UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(["", "k", "m", "g", "t"])}


def _store_target(_: click.Context, __: click.Parameter, target: str) -> str:
    if not target:  # "$CATALOG" that is not set; the working directory is not what was meant
        raise click.BadParameter("the path is empty")
    return target


store_option = click.option(
    "--store",
    envvar="KVMETA_STORE",
    required=True,
    metavar="PATH|URL",
    callback=_store_target,
    help="The store: its directory, or kvmeta://HOST:PORT of its server.  [env: KVMETA_STORE]",
)
dataset_option = click.option("--dataset", default="default", show_default=True, help="The dataset.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for scripts.")
progress_option = click.option(
    "--progress/--no-progress", default=None, help="A progress bar on stderr; by default only on a terminal."
)


def is_server(target: str) -> bool:
    """Tell whether --store names a server, not a directory."""
    return "://" in target


def open_store(target: str, mode: str, must_exist: bool = False, *, probe: bool = False) -> Any:
    """Return the store at `target`, a context manager; for a directory this imports the engine.

    With `must_exist`, mode "a" does not make a store that is missing: a mistyped path is told, not filled.
    With `probe`, what a directory's device cannot read is damage; else it may end the process.
    """
    import kvmeta

    if is_server(target):
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the errors say what gRPC's own lines would
        return kvmeta.open(target, mode=mode)
    given = {}
    if probe:
        from kvmeta.engine.options import EngineOptions

        given["options"] = EngineOptions(probe=True)
    if must_exist:
        kvmeta.open(target, mode="r", **given).close()
    return kvmeta.open(target, mode=mode, **given)


@contextmanager
def told_that_it_goes_on(target: str) -> Iterator[None]:
    """Where the block is interrupted while a server works for it, say that the server does not stop."""
    try:
        yield
    except KeyboardInterrupt as error:
        if is_server(target):
            error.add_note("the server goes on with it")
        raise


def ids_of(keys: tuple[str, ...], are_hex: bool) -> IdArray:
    """Return the IDs that a command's arguments name: keys, or with --hex the IDs themselves."""
    from kvmeta.ids import ids_from_hex, ids_from_keys

    return ids_from_hex(keys) if are_hex else ids_from_keys(keys)


def parse_size(text: str) -> int:
    """Return a number of bytes: 1048576, 512k, 64MiB, 1.5 GiB; the units are powers of 1,024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size; write 1048576, 512KiB, 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2]])
