"""One line an entry: how found locations are printed, for people and for scripts, in the order asked.

    ID                                VOLUME      LENGTH          OFFSET  CHECKSUM         TAG  KEY

Columns have fixed widths, so that lines can be written as they come, however many follow. KEY is there where
keys were asked for. In JSON a version is a string, for readers that hold numbers as doubles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TITLES = f"{'ID':32}  {'VOLUME':>6}  {'LENGTH':>10}  {'OFFSET':>14}  {'CHECKSUM':8}  {'TAG':>10}"
FIELDS = ("volume", "length", "offset", "checksum", "tag")
_STATE_WIDTH = len(TITLES) - 34


def echo_rows(
    hex_ids: Sequence[str],
    locations: NDArray[np.void],
    versions: NDArray[np.uint64],
    as_json: bool,
    states: Iterable[str] | None = None,
    keys: Iterable[bytes] | None = None,
) -> None:
    """Print one line an ID; `states` ("found", "absent", "damaged") tells which have a location."""
    told = ["found"] * len(hex_ids) if states is None else list(states)
    asked: Sequence[bytes | None] = [None] * len(hex_ids) if keys is None else list(keys)
    rows = zip(hex_ids, locations.tolist(), versions.tolist(), told, asked, strict=True)
    line = _json_row if as_json else _text_row
    lines = [line(*row) for row in rows]
    if lines:
        click.echo("\n".join(lines))


def entry(hex_id: str, location: Sequence[int], version: int, key: str | None = None) -> dict[str, Any]:
    """Return one entry as JSON has it."""
    fields = dict(zip(FIELDS, location, strict=True))
    return {
        **_asked(hex_id, key),
        "found": True,
        **fields,
        "checksum": f"{fields['checksum']:08x}",
        "version": str(version),
    }


def _asked(hex_id: str, key: str | None) -> dict[str, Any]:
    return {"id": hex_id} if key is None else {"id": hex_id, "key": key}


def _json_row(hex_id: str, location: Sequence[int], version: int, state: str, asked: bytes | None) -> str:
    key = None if asked is None else asked.decode("utf-8", "surrogateescape")
    if state != "found":
        return json.dumps({**_asked(hex_id, key), "found": None if state == "damaged" else False})
    return json.dumps(entry(hex_id, location, version, key))


def _text_row(hex_id: str, location: Sequence[int], _: int, state: str, asked: bytes | None) -> str:
    key = "" if asked is None else f"  {asked.decode('utf-8', 'backslashreplace')}"
    if state != "found":
        return f"{hex_id}  {state.ljust(_STATE_WIDTH) if key else state}{key}"
    volume, length, offset, checksum, tag = location
    return f"{hex_id}  {volume:>6}  {length:>10}  {offset:>14}  {checksum:08x}  {tag:>10}{key}"
