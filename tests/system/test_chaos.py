"""A cluster in network namespaces, amid every kind of fault at once: nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import LANES
from tests.chaos.rounds import Round
from tests.system.disks import needs

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    needs("ip", "iptables", "tc", "etcd"),
]


def test_faults_of_every_kind_lose_no_acknowledged_write(tmp_path: Path) -> None:
    result = Round(1, 0, tmp_path, print, held_s=(1.0, 2.0)).run()
    assert not result.wrong, "\n\n".join(result.wrong)
    assert set(result.faults) == {kind.__name__ for kinds in LANES.values() for kind in kinds}
    for kind in ("put", "delete", "insert", "relocate", "lookup", "fast"):
        assert result.operations[kind]["done"] > 100, kind
