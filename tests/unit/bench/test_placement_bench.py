"""The placement benchmark runs whole in its tiny form."""

from __future__ import annotations

import json

from bench import placement


def test_the_tiny_form_tells_balance_and_movement(tmp_path):
    results = tmp_path / "placement.json"
    assert placement.main(["--tiny", "--data", str(tmp_path), "--results", str(results)]) == 0
    answers = {each["key"]: each for each in json.loads(results.read_text())["tiny"]["answers"]}
    assert set(answers) == {"balance", "movement", "removal", "time"}
    assert 1 <= answers["balance"]["measured"]["median"] < 1.2
    assert len(answers["movement"]["beside"]) == 2 * 3  # each cluster, one node added and one removed
