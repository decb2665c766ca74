"""Hostile clients cost a server bounded memory, shut nobody out, and leave nothing behind: each for a moment.

`make hostile` is the same at full size.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.attacks import ATTACKS
from tests.hostile.siege import GROWN_MB_MAX, Healthy, besieged
from tests.serving import ServerProcess

SCALE, CALM_S, ATTACK_S = 0.1, 0.2, 0.8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("hostile") / "store") as server:
        yield server


@pytest.fixture(scope="module")
def healthy(server: ServerProcess) -> Healthy:
    return Healthy(server.target)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_uses_bounded_memory_and_locks_out_no_other_client(
    server: ServerProcess, healthy: Healthy, name: str
) -> None:
    found = besieged(name, server, healthy, SCALE, CALM_S, ATTACK_S)
    assert found.grown_mb < GROWN_MB_MAX
    assert found.calls > found.failed
    assert found.recovery_s < found.recovery_s_max
