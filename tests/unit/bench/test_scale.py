"""The growth benchmark runs whole in its tiny form, goes on where it stopped, and counts what it says."""

from __future__ import annotations

import json

import pytest

from bench import churn, device, results_page, scale, sections
from bench.parts import Parts
from bench.stores import Stores

pytestmark = pytest.mark.slow


def run(tmp_path):
    results = tmp_path / "scale.json"
    assert scale.main(["--tiny", "--data", str(tmp_path / "data"), "--results", str(results)]) == 0
    return json.loads(results.read_text())["tiny"]


def test_the_tiny_form_measures_every_size(tmp_path, capsys):
    section = run(tmp_path)

    told = sections.sizes(section)
    assert [rows for rows, _ in told] == [5_000, 20_000]
    for _, answer in told:
        for name in (
            "warm, in process",
            "warm, over gRPC",
            "cold, batches of 4,096",
            "memory",
            "disk",
            "puts",
        ):
            assert sections.series(answer, name) is not None, name
    keys = {answer["key"] for answer in section["answers"]}
    assert {"growth-remote", "growth-local", "cold-reads", "memory", "disk"} <= keys
    assert "5,000 entries" in capsys.readouterr().out
    assert not list((tmp_path / "data").glob("scale-*"))
    assert not (tmp_path / "data" / "scratch").exists()
    assert "## Growth" in results_page.page({"scale": section})


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    sizes = scale.FORMS["tiny"]
    measured = []

    def measure():
        measured.append(1)
        return {"figure": 1.5}

    assert Parts(tmp_path, "tiny", sizes).part("warm", measure) == {"figure": 1.5}
    assert Parts(tmp_path, "tiny", sizes).part("warm", measure) == {"figure": 1.5}
    assert len(measured) == 1
    Parts(tmp_path, "tiny", scale.FORMS["quick"]).part("warm", measure)  # of other sizes: not the same
    assert len(measured) == 2

    parts = Parts(tmp_path, "tiny", sizes)
    parts.done()
    parts.part("warm", measure)
    assert len(measured) == 3


def test_a_size_that_does_not_fit_on_disk_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scale.shutil, "disk_usage", lambda _: scale.shutil._ntuple_diskusage(100, 0, 10 << 30)
    )

    assert scale.has_room(100_000_000, tmp_path)
    assert not scale.has_room(1_000_000_000, tmp_path)


def test_only_sizes_that_fit_in_memory_together_are_measured_warm(monkeypatch):
    monkeypatch.setattr(
        scale.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1 << 20
    )  # 4 GiB

    assert scale.warm_sizes([1_000_000, 50_000_000, 300_000_000]) == [1_000_000, 50_000_000]


def test_the_slope_is_the_exponent_of_cost_against_rows():
    assert scale.slope({"1000": [5.0], "1000000": [5.0]}) == pytest.approx(0)
    assert scale.slope({"1000": [1.0], "1000000": [1000.0]}) == pytest.approx(1)


def test_puts_into_a_copy_leave_the_store_alone(tmp_path):
    sizes = scale.FORMS["tiny"]
    stores = scale.stores_of(20_000, tmp_path)
    path = stores.big()
    before = {file.name: file.stat().st_mtime_ns for file in path.rglob("*.seg")}

    told = churn.puts(stores, 20_000, sizes)

    assert told["rows"] == sizes.put_rows_least
    assert told["written"] > 1
    assert {file.name: file.stat().st_mtime_ns for file in path.rglob("*.seg")} == before
    assert Stores(tmp_path, stores.sizes).big() == path


def test_reads_are_counted_for_the_device_or_else_the_process(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    for known in (True, False):
        if not known:
            monkeypatch.setattr(device.os, "major", lambda _: 0)  # no such device
        below = device.Device(tmp_path)
        device.make_cold(tmp_path)
        start = below.counters()
        assert file.read_bytes() == bytes(1 << 20)
        done = below.since(start)
        assert done.reads >= 0
        assert done.seconds > 0
        assert known or done.depth == 0
