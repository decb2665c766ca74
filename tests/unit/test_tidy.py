"""House rules that a reader would otherwise have to check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("kvmeta", "server", "bench", "tests")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
SOURCES = [path for path in SOURCES if not path.stem.endswith(("_pb2", "_pb2_grpc"))]  # generated
PAGES = [
    ROOT / name
    for name in (
        "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "bench/RESULTS.md",
    )
]  # fmt: skip
PAGES += sorted((ROOT / "docs").rglob("*.md"))
LINES_MAX = 500
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "core", "manager", "data", "info"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_is_one_noun_that_fits_one_mind(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES_MAX
    assert path.stem not in EMPTY_NAMES
    assert not re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b", text)
    if named(path).startswith(("kvmeta", "server", "bench")):
        assert ast.get_docstring(ast.parse(text)), "a module opens with what it is"


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\((\d{4}-[^)]+)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    names = set(re.findall(r"\b([a-z_]+\.py)\b", text))
    known = {path.name for path in SOURCES}
    assert names <= known, names - known


def test_every_file_of_the_engine_is_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [p.name for p in (ROOT / "kvmeta" / "engine").glob("*.py") if p.name not in text]
    assert missing == ["__init__.py"]
