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
COLUMNS_MAX = 100
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "core", "manager", "data", "info"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_is_short_and_has_a_telling_name(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES_MAX
    assert path.stem not in EMPTY_NAMES
    assert not re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b", text)
    if named(path).startswith(("kvmeta", "server", "bench")):
        assert ast.get_docstring(ast.parse(text)), "a module opens with what it is"


def prose(text: str) -> list[str]:
    """Return the lines of a page that are neither code nor table nor heading."""
    lines: list[str] = []
    fenced = code = False
    after_blank = True
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        code = line.startswith("    ") and (after_blank or code)
        after_blank = not line.strip()
        if not (fenced or code or line.lstrip().startswith(("|", "#", "```"))):
            lines.append(line)
    return lines


def can_be_wrapped(line: str) -> bool:
    """Tell whether a long line has a space to break it at; one long link has none."""
    words = re.sub(r"^\s*([-*]|\d+\.)?\s*", "", line)
    return len(line) > COLUMNS_MAX and " " in words


@pytest.mark.parametrize("path", [page for page in PAGES if page.suffix == ".md"], ids=named)
def test_prose_fits_a_window_of_a_hundred_columns(path: Path) -> None:
    assert [line for line in prose(path.read_text()) if can_be_wrapped(line)] == []


def test_wide_code_tables_headings_and_links_are_not_counted_as_prose() -> None:
    wide = "word " * 30
    assert prose(f"{wide}\n- {wide}\n  {wide}") == [wide, f"- {wide}", f"  {wide}"]
    assert prose(f"# {wide}\n| {wide} |\n```\n{wide}\n```\n") == []
    assert prose(f"Like this:\n\n    {wide}\n    {wide}") == ["Like this:", ""]
    assert prose(f"- an item\n    {wide}") == ["- an item", f"    {wide}"]
    assert can_be_wrapped(wide)
    assert not can_be_wrapped(f"- [link]({'x' * COLUMNS_MAX})")
    assert not can_be_wrapped("short")


def anchors(page: Path) -> set[str]:
    """Return what a link into a page may name: its headings in lower case, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
        if "://" not in target:
            page = path.parent / target if target else path
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


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
