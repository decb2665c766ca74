from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import frames, service
from bench.flood import Flood
from bench.systems.redis import RedisSystem
from bench.workers import Worker, together_s
from kvmeta.embedded import EmbeddedStore
from tests.patience import until
from tests.serving import served

pytestmark = pytest.mark.slow


def run(tmp_path: Path) -> list[dict]:
    results = tmp_path / "service.json"
    words = ["--tiny", "--data", str(tmp_path / "stores"), "--results", str(results)]
    assert service.main(words) == 0
    return json.loads(results.read_text())["tiny"]["answers"]


def test_the_tiny_form_answers_every_question_and_writes_every_round(tmp_path, capsys):
    answers = run(tmp_path)

    missing = RedisSystem().missing()
    expected = [key for key in service.QUESTIONS if not (missing and key in service.REDIS_QUESTIONS)]
    assert sorted(answer["key"] for answer in answers) == sorted(expected)
    for answer in answers:
        assert answer["verdict"] == "-"
        for series in [answer["measured"], *answer["beside"]]:
            assert series["rounds"]
            assert series["min"] <= series["median"] <= series["max"]
    printed = capsys.readouterr().out
    assert all(answer["question"] in printed for answer in answers)
    assert missing in printed
    hanging = {series["name"]: series["median"] for a in answers for series in a["beside"]}
    assert hanging["still there in the end: idle connections"] == 40
    assert hanging["still there in the end: half-sent calls"] == 6
    assert hanging["still there in the end: answers not taken"] == 6
    assert not (tmp_path / "stores" / "scratch").exists()


def test_a_flood_keeps_its_connections_until_it_is_closed(tmp_path):
    with EmbeddedStore(tmp_path / "store") as store, served(store) as target:
        flood = Flood(target.removeprefix("kvmeta://"), idle=5, slow=6)
        try:
            until(lambda: flood.held().unread == 3, "the answers do not come")
            assert flood.held() == (5, 3, 3)
        finally:
            flood.close()


def test_frames_are_laid_out_as_http_2_has_them():
    frame = frames.encoded(frames.DATA, frames.END_STREAM, 1, b"abc")

    assert frame == b"\x00\x00\x03\x00\x01\x00\x00\x00\x01abc"
    assert frames.literal_headers({"te": "trailers"}) == b"\x00\x02te\x08trailers"


class Counter:
    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("a negative start")
        self.count = start

    def add(self, more: int) -> int:
        self.count += more
        return self.count


def test_a_worker_keeps_its_object_and_reports_errors():
    with Worker(Counter, 1) as worker:
        assert [worker.call("add", 1), worker.call("add", 2)] == [2, 4]
        with pytest.raises(RuntimeError, match="TypeError"):
            worker.call("add", "three")
        assert worker.call("add", 0) == 4
    with pytest.raises(RuntimeError, match="a negative start"):
        Worker(Counter, -1)


def test_threads_share_the_work_and_an_error_in_one_is_raised():
    seen = []
    together_s(seen.append, range(100), 4)
    assert sorted(seen) == sorted([*range(100), *range(25)])

    with pytest.raises(ZeroDivisionError):
        together_s(lambda n: 1 // n, np.arange(10).tolist(), 2)
