"""What takes long to make is made once: a directory with a record of what was built, by which recipe.

redis-hashed-20000000/built.json    the recipe; written last, so a half-made build has none
redis-hashed-20000000/store/        what was built
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def built(directory: Path, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Return directory/store, made now by `build(path)` unless a whole one of the same recipe is there."""
    path = directory / "store"
    if record(directory).get("recipe") == recipe:
        return path
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    start = time.monotonic()
    build(path)
    made = {"recipe": recipe, "build": uuid.uuid4().hex, "seconds": time.monotonic() - start}
    unfinished = directory / "built.new"
    unfinished.write_text(json.dumps(made))
    unfinished.replace(directory / "built.json")
    return path


def record(directory: Path) -> dict[str, Any]:
    """Return what was built there: its "recipe", the "build"'s own number, the "seconds" it took."""
    path = directory / "built.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def disk_bytes(directory: Path, *, without: str = "") -> int:
    """Return the space that files below take, those below a directory named `without` left out."""
    files = (file for file in directory.rglob("*") if file.is_file() and without not in file.parts)
    return sum(file.stat().st_blocks * 512 for file in files)
