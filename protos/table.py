"""Writes the table of calls of docs/protocol.md from the rows of kvmeta/protocol/methods.py."""

from __future__ import annotations

import re
from pathlib import Path

from kvmeta.protocol.methods import STORE_ROWS, Row

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
_TABLE = re.compile(r"(?<=\n## Calls\n)(.*?\n)(\|.*?\|\n)(?=\n)", re.DOTALL)


def table() -> str:
    """Return the table."""
    lines = ["| call | | may be repeated |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.says} | {_repeats(row)} |" for row in STORE_ROWS]
    return "\n".join(lines) + "\n"


def _repeats(row: Row) -> str:
    if isinstance(row.repeatable, bool):
        return "yes" if row.repeatable else "no"
    return row.repeatable.__doc__ or ""


def written(page: str) -> str:
    """Return the page with the table."""
    return _TABLE.sub(lambda found: found[1] + table(), page, count=1)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
