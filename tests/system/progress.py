"""Long runs: one JSON line for each thing done, so that a run that was stopped goes on; tables at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Progress:
    """What was done so far, in `file`, and how far that is of `total`."""

    def __init__(self, file: Path, total: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._total = total
        self._told = 0.0
        self.records: list[dict[str, Any]] = []
        if file.exists():
            lines = file.read_text().splitlines(keepends=True)
            self.records = [json.loads(line) for line in lines if line.endswith("\n")]
            print(f"{len(self.records)} of {total} were done before: {file}")
        self._start, self._before = time.monotonic(), len(self.records)

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record; now and then tell how far it is."""
        self.records.append(record)
        with open(self._file, "a") as out:
            out.write(json.dumps(record) + "\n")
        now = time.monotonic()
        if now - self._told > 10 or len(self.records) == self._total:
            self._told = now
            each = (now - self._start) / (len(self.records) - self._before)
            left = each * (self._total - len(self.records))
            line = f"{len(self.records)} of {self._total}, {each:.2f} s each, {left / 60:.0f} min left"
            print(line, file=sys.stderr, flush=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows under their heads, in columns."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = (
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
