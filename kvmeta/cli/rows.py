"""One line an entry: how found locations are printed, for people and for scripts, in the order asked.

    ID                                VOLUME      LENGTH          OFFSET  CHECKSUM         TAG

Columns have fixed widths, so that lines can be written as they come, however many follow.
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


def echo_rows(
    hex_ids: Sequence[str],
    locations: NDArray[np.void],
    versions: NDArray[np.uint64],
    as_json: bool,
    states: Iterable[str] | None = None,
) -> None:
    """Print one line an ID; `states` ("found", "absent", "damaged") tells which have a location."""
    told = ["found"] * len(hex_ids) if states is None else list(states)
    rows = zip(hex_ids, locations.tolist(), versions.tolist(), told, strict=True)
    line = _json_row if as_json else _text_row
    lines = [line(*row) for row in rows]
    if lines:
        click.echo("\n".join(lines))


def entry(hex_id: str, location: Sequence[int], version: int) -> dict[str, Any]:
    """Return one entry as JSON has it."""
    return {"id": hex_id, **dict(zip(FIELDS, location, strict=True)), "version": version}


def _json_row(hex_id: str, location: Sequence[int], version: int, state: str) -> str:
    if state != "found":
        return json.dumps({"id": hex_id, "found": None if state == "damaged" else False})
    return json.dumps(entry(hex_id, location, version))


def _text_row(hex_id: str, location: Sequence[int], _: int, state: str) -> str:
    if state != "found":
        return f"{hex_id}  {state}"
    volume, length, offset, checksum, tag = location
    return f"{hex_id}  {volume:>6}  {length:>10}  {offset:>14}  {checksum:08x}  {tag:>10}"
