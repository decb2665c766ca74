"""Handoff: what waits goes when its node answers, whatever lies damaged between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvmeta_server.cluster.cluster_map import Member, found
from kvmeta_server.cluster.disk import FileDisk
from kvmeta_server.cluster.handoff import Handoff
from kvmeta_server.cluster.hints import HintFiles
from kvmeta_server.cluster.replica import Applied
from tests.patience import HANG_S
from tests.unit.kvmeta_server.cluster.replicas import rows_of


def test_hints_behind_a_damaged_one_are_still_sent(tmp_path: Path) -> None:
    hints = HintFiles(FileDisk(tmp_path))
    for seed in range(3):
        hints.add(7, "default", rows_of(2, seed=seed))
    _, second, _ = hints.read(7)
    with open(tmp_path / "hints" / "7", "r+b") as file:
        file.seek(second.end - 8)
        file.write(b"\xff" * 8)
    sent: list[np.ndarray] = []

    async def apply(slot: int, dataset: str, epoch: int, rows: np.ndarray) -> Applied:
        sent.append(rows)
        return Applied(np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.uint64))

    async def work() -> None:
        peers: Any = SimpleNamespace(apply=apply, likely=lambda slot: True)
        node = Member(7, "n7", "localhost:7400")
        maps: Any = SimpleNamespace(current=replace(found("test", bytes(16), node), members=(node,)))
        nobody: Any = None
        log: Any = SimpleNamespace(info=lambda *_, **__: None)
        handoff = Handoff(hints, maps, peers, nobody, lambda: ["default"], log, 0.0)
        async with asyncio.timeout(HANG_S):
            task = asyncio.ensure_future(handoff.run())
            while hints.waiting():
                await asyncio.sleep(0)
            task.cancel()

    asyncio.run(work())
    assert [rows.tolist() for rows in sent] == [rows_of(2, seed=seed).tolist() for seed in (0, 2)]
    assert hints.dropped_rows == 2
    assert not (tmp_path / "hints" / "7").exists()
