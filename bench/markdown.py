"""Lines of Markdown: prose wrapped as the pages are, and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

COLUMNS = 100


def prose(text: str, indent: str = "") -> list[str]:
    """Return the text as lines, with `indent` before all but the first."""
    return textwrap.wrap(
        text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table as lines, an empty one after it."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]
