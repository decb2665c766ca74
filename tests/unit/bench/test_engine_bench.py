import json

import numpy as np
import pytest

import kvmeta
from bench import engine
from bench.stores import Stores
from bench.workloads import Catalogue, Queries

pytestmark = pytest.mark.slow


def test_the_tiny_form_answers_every_question_and_writes_every_round(tmp_path, capsys):
    results = tmp_path / "engine.json"
    words = ["--tiny", "--data", str(tmp_path / "stores"), "--results", str(results)]

    assert engine.main(words) == 0

    written = json.loads(results.read_text())["tiny"]
    assert sorted(answer["key"] for answer in written["answers"]) == sorted(engine.QUESTIONS)
    for answer in written["answers"]:
        assert answer["verdict"] in ("ok", "short", "-")
        for series in [answer["measured"], *answer["beside"]]:
            assert series["rounds"]
            assert series["min"] <= series["median"] <= series["max"]
    assert written["machine"]["cores"]
    printed = capsys.readouterr().out
    assert all(answer["question"] in printed for answer in written["answers"])


def test_finished_stores_are_reused_and_half_built_ones_are_rebuilt(tmp_path):
    sizes = engine.FORMS["tiny"]
    marker = Stores(tmp_path, sizes).small().parent / "built.json"
    before = marker.read_text()

    Stores(tmp_path, sizes).small()
    assert marker.read_text() == before

    marker.unlink()
    Stores(tmp_path, sizes).small()
    assert json.loads(marker.read_text())["build"] != json.loads(before)["build"]


def test_a_catalogue_packs_its_files_without_overlap_and_gives_each_its_own_id():
    batches = list(Catalogue().batches(0, 30_000, 4096))
    ids = np.concatenate([ids for ids, _ in batches])
    locations = np.concatenate([locations for _, locations in batches])

    assert len(np.unique(ids)) == 30_000
    assert not (locations["offset"] % 512).any()
    same_shard = locations["volume"][1:] == locations["volume"][:-1]
    ends = locations["offset"] + locations["length"]
    assert (ends[:-1] <= locations["offset"][1:])[same_shard].all()
    assert (locations["offset"][1:][~same_shard] == 512).all()
    assert locations["volume"].max() > 1


def test_sequential_ids_are_the_big_endian_numbers():
    ids = Catalogue(ids="sequential").ids_of(np.arange(3, dtype=np.uint64))

    assert (ids == kvmeta.ids_from_ints([0, 1, 2])).all()


def test_a_wrong_answer_stops_the_benchmark():
    queries = Queries(Catalogue(), 1000, present=0.5)
    batch = queries.batch(np.random.default_rng(0), 100)

    with pytest.raises(AssertionError, match="answered wrongly"):
        queries.check(batch, batch.present, np.zeros(100, kvmeta.LOCATION))
