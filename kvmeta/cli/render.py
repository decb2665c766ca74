"""How results look: aligned columns for people, one JSON object a line for scripts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kvmeta.sources.report import Report

_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]


def size(n: int) -> str:
    """Return a number of bytes in the unit that leaves up to four digits: 512 B, 1.5 GiB."""
    value, unit = float(n), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{n} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def count(n: int, noun: str = "", plural: str = "") -> str:
    """Return a number with its thousands apart and, given a noun, of how many: 1 file, 2,000 files."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}" if noun else f"{n:,}"


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under their titles, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(titles))]
    widths = [max([len(title), *(len(row[i]) for row in cells)]) for i, title in enumerate(titles)]
    for row in [list(titles), *cells]:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        click.echo("  ".join(parts).rstrip())


def pairs(values: Mapping[str, Any], indent: str = "") -> None:
    """Print names and values in two columns; what is nested follows its name, further in."""
    width = max((len(name) for name, value in values.items() if not _is_nested(value)), default=0)
    for name, value in values.items():
        if not _is_nested(value):
            click.echo(f"{indent}{name.ljust(width)}  {_value(name, value)}")
        elif value:
            click.echo(f"{indent}{name}")
            for inner in [value] if isinstance(value, Mapping) else value:
                pairs(inner, indent + "  ")
        else:
            click.echo(f"{indent}{name.ljust(width)}  none")


def report(done: Report, verb: str, preposition: str, noun: str, *, as_json: bool) -> None:
    """Print what a pack or an index run did: "packed 3 files (1 KiB) into 1 shard in 0.1 s, 0 skipped"."""
    if as_json:
        json_line(dataclasses.asdict(done))
    else:
        click.echo(
            f"{verb} {count(done.files, 'file')} ({size(done.bytes)}) {preposition} "
            f"{count(done.shards, noun)} in {done.seconds:.1f} s, {count(done.skipped)} skipped"
        )


def json_line(values: Any) -> None:
    """Print one JSON object; names that are not UTF-8 keep their bytes as surrogate escapes."""
    click.echo(json.dumps(values, default=str))


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, (list, tuple)) and all(isinstance(each, Mapping) for each in value)
    )


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return (
            f"{count(value)}  ({size(value)})" if name.endswith("bytes") and value >= 1000 else count(value)
        )
    return f"{value:.3g}" if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> str:
    # A name that is not UTF-8 must not end the command in the middle of its output.
    return "-" if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).isdigit()
