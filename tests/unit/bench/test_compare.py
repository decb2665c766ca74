"""The comparison runs whole in its tiny form with the systems there are, and names those it leaves out."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from bench import compare, results_page, sections
from bench.asking import ONE, PIPELINED, Asker, Case
from bench.systems import lmdb, mooncake, ours, postgres, redis, rocksdb, seaweedfs
from bench.systems.system import Pool, matched, unordered
from bench.workloads import Catalogue, Queries

pytestmark = pytest.mark.slow

ADAPTERS = [
    ours.Served(), ours.Embedded(), redis.RedisSystem(), redis.RedisAlways(), postgres.PostgresSystem(),
    postgres.InodeSystem(), lmdb.Lmdb(), mooncake.Mooncake(), seaweedfs.SeaweedFS(), rocksdb.BlockCache(),
    rocksdb.Plain(), rocksdb.Cuckoo(),
]  # fmt: skip
KINDS = ("hashed", "sequential", "paths")
ROWS = 3000


@pytest.mark.parametrize("system", ADAPTERS, ids=lambda system: system.key)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_returns_the_entries_it_was_given(system, kind, tmp_path):
    if system.missing():
        pytest.skip(system.missing())
    catalogue, random = Catalogue(ids=kind), np.random.default_rng(1)
    _let_other_users_in(tmp_path)
    directory = tmp_path / "held"
    directory.mkdir()
    batches = list(catalogue.batches(0, ROWS, 1000))
    if system.keeps:
        system.build(directory, batches)
    with system.served(directory) as place:
        client = system.client(place.address)
        if not system.keeps:
            client.load(batches)
        for present, access in ((1.0, "uniform"), (0.5, "uniform"), (0.0, "uniform"), (1.0, "zipf")):
            queries = Queries(catalogue, ROWS, present, access)
            asked = [queries.batch(random, 200) for _ in range(3)]
            for batch, answer in zip(asked, client.lookups([batch.ids for batch in asked]), strict=True):
                queries.check(batch, answer.found, answer.locations)
            answer = client.lookup(asked[0].ids)
            queries.check(asked[0], answer.found, answer.locations)
        client.close()


def _let_other_users_in(directory: Path) -> None:
    """PostgreSQL's own user has to get there: pytest keeps every level that it makes to its own user."""
    for level in takewhile(lambda level: level.stat().st_mode & 0o077 == 0, (directory, *directory.parents)):
        level.chmod(0o755)


def test_the_tiny_form_measures_every_system_there_is(tmp_path, capsys, monkeypatch):
    few = [ours.Served(), ours.EchoSystem(), ours.Embedded(), rocksdb.BlockCache(), seaweedfs.SeaweedFS()]
    monkeypatch.setattr(compare, "SYSTEMS", few)
    monkeypatch.setattr(seaweedfs.SeaweedFS, "missing", lambda _: "the program weed not found")
    results = tmp_path / "compare.json"

    assert compare.main(["--tiny", "--data", str(tmp_path / "data"), "--results", str(results)]) == 0

    section = json.loads(results.read_text())["tiny"]
    keys = [answer["key"] for answer in section["answers"]]
    assert keys == [
        "system-kvmeta", "system-echo", "system-kvmeta-embedded", "system-rocksdb", "kvmeta-embedded-rocksdb",
    ]  # fmt: skip
    for answer in sections.systems(section):
        for case in compare.CASES:
            assert sections.series(answer, case)["median"] > 0
    served = sections.systems(section)[0]
    for name in ("sequential IDs", "paths IDs", "durable puts", "memory", "disk", "open"):
        assert sections.series(served, name) is not None, name
    assert "left out: SeaweedFS: the program weed not found" in capsys.readouterr().out
    assert not (tmp_path / "data" / "scratch").exists()
    page = results_page.page({"compare": section})
    assert "| RocksDB, block-based with Bloom filter | " in page


def test_a_wrong_answer_stops_the_comparison(tmp_path):
    class Forgetful(ours.KvmetaClient):
        def lookup(self, ids):
            answer = super().lookup(ids)
            answer.found[:1] = False
            return answer

    ours.Embedded().build(tmp_path, Catalogue().batches(0, 100, 100))
    asker = Asker(Forgetful, str(tmp_path / "store"), Catalogue(), 100)

    with pytest.raises(AssertionError, match="answered wrongly"):
        asker.lookups(Case(batch_rows=50), ONE, 0.01)
    asker.close()


def test_every_slice_of_puts_writes_new_entries(tmp_path):
    asker = Asker(ours.KvmetaClient, str(tmp_path / "store"), Catalogue(), 0)
    got = [asker.puts(256, way, 0.01) for way in (ONE, "2 threads")]
    asker.close()

    assert all(each.rate > 0 for each in got)
    assert got[0].p99_ms >= got[0].p50_ms > 0
    with kvmeta.open(tmp_path / "store", mode="r") as store:
        figures = store.stats().datasets[0]
        assert (figures.rows + figures.memtable_rows) % 256 == 0
        assert figures.rows + figures.memtable_rows >= 6 * 256


def test_ways_of_asking_differ_in_how_many_batches_are_in_flight(tmp_path):
    seen = []

    class Watched(ours.KvmetaClient):
        def lookups(self, batches):
            seen.append(len(batches))
            return super().lookups(batches)

    ours.Embedded().build(tmp_path, Catalogue().batches(0, 1000, 1000))
    asker = Asker(Watched, str(tmp_path / "store"), Catalogue(), 1000)
    for _ in range(20):  # the first slices learn how much a slice is
        asker.lookups(Case(batch_rows=10), PIPELINED, 0.05)
    asker.close()

    assert max(seen) == 32


def test_columns_return_in_the_order_of_the_ids_asked():
    catalogue = Catalogue()
    ((ids, locations),) = catalogue.batches(0, 50, 50)
    order = np.random.default_rng(3).permutation(50)
    asked = ids[np.array([7, 3, 7, 49])]

    answer = matched(asked, ids[order], locations[order])
    assert answer.found.all()
    assert (answer.locations == locations[[7, 3, 7, 49]]).all()
    absent = catalogue.ids_of(np.array([1 << 41], np.uint64))
    assert not matched(absent, ids, locations).found.any()
    assert not matched(absent, ids[:0], locations[:0]).found.any()

    values = [row.tobytes() for row in locations[order]]
    assert (unordered(values, order).locations == locations).all()
    answer = unordered([values[0], None], np.array([1, 0]))
    assert answer.found.tolist() == [False, True]
    assert answer.locations[1] == locations[order[0]]


def test_a_connection_serves_one_call_at_a_time_until_one_fails():
    made = iter(range(10))
    pool = Pool(lambda: next(made))
    with pool.borrowed() as first, pool.borrowed() as second:
        assert {first, second} == {0, 1}
    with pytest.raises(ZeroDivisionError), pool.borrowed():
        raise ZeroDivisionError
    with pool.borrowed() as third, pool.borrowed() as fourth:
        assert {third, fourth} == {1, 2} or {third, fourth} == {0, 2}


def test_zipf_queries_ask_mostly_for_a_few_entries():
    queries = Queries(Catalogue(), 1_000_000, access="zipf")
    indices = queries.batch(np.random.default_rng(1), 100_000).indices

    _, counts = np.unique(indices, return_counts=True)
    assert indices.max() < 1_000_000
    assert np.sort(counts)[-10:].sum() > 0.1 * len(indices)


def test_paths_are_hashed_as_keys_are():
    assert Catalogue(ids="paths").ids_of(np.array([5], np.uint64)) == kvmeta.as_ids(
        ["train/00000000/0005.jpg"]
    )
