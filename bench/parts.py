"""Parts of a long run: each is kept when it is done, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kvmeta


class Parts:
    """The parts of a run that are done, kept in a file each until the whole run is."""

    def __init__(self, directory: Path, name: str, sizes: Any) -> None:
        self._directory = directory / name
        self._recipe = {"kvmeta": kvmeta.__version__, "sizes": json.loads(json.dumps(asdict(sizes)))}

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a part as it was measured, now or before the run was interrupted."""
        path = self._directory / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["recipe"] == self._recipe:
                print(f"  {name}: as measured before", file=sys.stderr)
                return dict(kept["part"])
        part = measure()
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps({"recipe": self._recipe, "part": part}))
        unfinished.replace(path)
        return part

    def done(self) -> None:
        """Forget all parts."""
        shutil.rmtree(self._directory, ignore_errors=True)
