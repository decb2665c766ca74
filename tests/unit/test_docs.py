"""What docs/format.md and the README publish is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.engine import mark, segment_header, wal
from kvmeta.engine.page import Bounds
from kvmeta.engine.segment_writer import SegmentWriter
from kvmeta.mixing import DEFAULT_SEED, mix, round_keys

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "docs" / "format.md").read_text()
README = (ROOT / "README.md").read_text()


def words(mixed: np.ndarray) -> str:
    return " ".join(f"{int(half):016x}" for half in mixed)


def test_the_published_vectors_of_the_bijection_hold() -> None:
    table = re.findall(r"\| `([0-9a-f]{32})` \| `([0-9a-f]{16} [0-9a-f]{16})` \|", FORMAT)
    assert len(table) == 4
    for plain, mixed in table:
        assert words(mix(kvmeta.ids_from_hex(plain))[0]) == mixed
    assert f"{DEFAULT_SEED:016X}" in FORMAT
    assert " ".join(f"{int(key):016x}" for key in round_keys(DEFAULT_SEED)) in " ".join(FORMAT.split())


def test_the_published_vectors_of_keys_hold() -> None:
    table = re.findall(r"\| (\(empty\)|`[^`]+`) \| `([0-9a-f]{32})` \|", FORMAT)
    keys = {key.strip("`"): id_hex for key, id_hex in table if not re.fullmatch(r"`[0-9a-f]{32}`", key)}
    assert len(keys) == 3
    for key, id_hex in keys.items():
        assert kvmeta.ids_to_hex(kvmeta.ids_from_keys(["" if key == "(empty)" else key])) == [id_hex]


def test_the_published_vector_of_a_version_holds() -> None:
    version = kvmeta.split_version(0x18ACA78D1A7FFFFF)
    assert f"{version.unix_ms - 1_577_836_800_000:,} ms" in FORMAT
    assert version[1:] == (31, 1023, True, 127)


@pytest.mark.parametrize(
    ("heading", "layout"),
    [
        ("### Header", segment_header.HEADER),
        ("## WAL", wal.RECORD),
        ("## MARK", mark.SLOT),
        ("## Location", kvmeta.LOCATION),
    ],
)
def test_the_offsets_in_each_table_match_the_layout(heading: str, layout: np.dtype) -> None:
    part = re.split(r"\n##+ ", FORMAT.split("\n" + heading, 1)[1])[0]
    published: dict[str, int] = {}
    for offset, names in re.findall(r"^\| (\d+) \| ([a-z][^|]*) \|", part, re.MULTILINE):
        at = int(offset)
        for name in re.findall(r"[a-z_]{3,}", names):
            if name in (layout.names or ()):
                published[name] = at
                at += layout[name].itemsize
    known = {name: layout.fields[name][1] for name in published}
    assert published == known
    assert set(layout.names or ()) - set(published) <= {"reserved"}


def test_the_worked_example_of_a_segment_matches_the_code(tmp_path: Path) -> None:
    loc = np.zeros(3, kvmeta.LOCATION)
    loc["volume"], loc["tag"] = 1, 7
    loc["length"], loc["offset"] = [100, 2000, 70_000], [512, 1536, 4096]
    loc["checksum"] = [0x11111111, 0x22222222, 0x33333333]
    rows = np.empty((3, 6), np.uint64)
    rows[:, :2] = mix(kvmeta.ids_from_ints([1, 2, 3]))
    rows[:, 2] = 0x18ACA78D1A000000
    rows[:, 3:] = loc.view(np.uint64).reshape(3, 3)
    rows = rows[np.argsort(rows[:, 0])]
    writer = SegmentWriter(tmp_path / "s", 1, bytes(range(16)), Bounds.of(rows), filter_bits=0)
    writer.append(rows)
    writer.finish()
    writer.seal()
    data = (tmp_path / "s").read_bytes()
    page = data[4096:8192]
    for i in range(3):
        assert page[23 * i : 23 * i + 23].hex() in FORMAT
    assert page[-8:].hex() in FORMAT
    assert f"{segment_header.file_seed(bytes(range(16)), 1):016x}" in FORMAT
    directory = data[8192 : 8192 + 16].hex()
    assert f"{directory[:8]} {directory[8:16]} | {directory[16:24]} {directory[24:]}" in FORMAT
    _, record = wal.encode(wal.WAL_START, 1, wal.PUT, rows[:1])
    example = "".join(re.findall(r"^    ([0-9a-f ]+)$", FORMAT.split("## WAL")[1], re.MULTILINE)).replace(
        " ", ""
    )
    assert record.hex() == example


def test_the_program_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert program is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(program[1], "README.md", "exec"), {})


def test_the_programs_of_the_readme_fit_a_narrow_window() -> None:
    programs = re.findall(r"```\w+\n(.*?)```", README, re.DOTALL)
    assert len(programs) > 3
    assert [line for program in programs for line in program.splitlines() if len(line) > 88] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_files_that_a_newcomer_is_sent_to_exist(name: str) -> None:
    page = (ROOT / name).read_text()
    paths = re.findall(r"(?<![\w/.-])(?:kvmeta|server|tests|bench|docs|protos)/[\w./-]*\w", page)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_first_change_in_contributing_matches_the_code() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    function, test = "_shown", "test_volumes_are_listed_added_and_moved"
    assert function in page
    assert test in page
    assert f"def {function}(" in (ROOT / "kvmeta" / "cli" / "volumes.py").read_text()
    assert f"def {test}(" in (ROOT / "tests" / "unit" / "cli" / "test_store_commands.py").read_text()
