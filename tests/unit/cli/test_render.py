"""How values look in a terminal."""

import pytest

from kvmeta.cli import render


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 50, "5.0 PiB"),
    ],
)
def test_sizes_have_the_unit_that_suits_them(n, text):
    assert render.size(n) == text


def test_a_table_aligns_text_left_and_numbers_right(capsys):
    render.table(("NAME", "ROWS"), [("a", 5), ("longer", "1,000"), ("b", None)])
    assert capsys.readouterr().out.splitlines() == [
        "NAME     ROWS",
        "a           5",
        "longer  1,000",
        "b           -",
    ]


def test_an_empty_table_is_its_titles(capsys):
    render.table(("NAME", "ROWS"), [])
    assert capsys.readouterr().out == "NAME  ROWS\n"


def test_pairs_align_their_values_and_indent_nested_pairs(capsys):
    render.pairs({"a": 1, "longer": 1.23456, "none": None, "inner": {"x_bytes": 2048}, "empty": []})
    assert capsys.readouterr().out.splitlines() == [
        "a       1",
        "longer  1.23",
        "none    -",
        "inner",
        "  x_bytes  2,048  (2.0 KiB)",
        "empty   none",
    ]


def test_a_name_that_is_not_utf_8_is_shown_escaped(capsys):
    render.table(("NAME",), [("\udcff.tar",)])
    render.json_line({"name": "\udcff.tar"})
    assert capsys.readouterr().out.splitlines()[1:] == ["\\udcff.tar", '{"name": "\\udcff.tar"}']
