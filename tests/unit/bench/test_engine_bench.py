import json

from bench import engine


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


def test_stores_are_built_once_and_a_half_built_one_again(tmp_path):
    stores = engine.Stores(tmp_path, engine.FORMS["tiny"])
    marker = stores.small().parent / "built.json"
    before = marker.read_text()

    stores.small()
    assert marker.read_text() == before

    marker.unlink()
    stores.small()
    assert json.loads(marker.read_text())["build"] != json.loads(before)["build"]
