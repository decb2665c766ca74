"""No decoder answers bytes with anything but a value or a typed error; the fuzz targets replayed, seeded."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.fuzz.process import run
from tests.fuzz.targets import TARGETS
from tests.patience import HANG_S


@pytest.fixture(scope="module")
def results() -> Any:
    done = run("replay", wait_s=2 * HANG_S, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_returns_a_value_or_raises_a_typed_error(results: Any, name: str) -> None:
    result = results[name]
    assert result["inputs"] > TARGETS[name].replays
    assert result["seeds_accepted"] > result["seeds"] / 2, "the seeds are refused: nothing is tested"
    assert result["accepted"] > result["seeds_accepted"], "no mutation gets through: nothing is tested"
    told = "\n".join(f"{each['told']}\nof (base64): {each['input']}" for each in result["findings"].values())
    assert not result["findings"], told
