"""What operators are told, of a node made of what the answer needs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.node import Node
from kvmeta_server.cluster.operators import Operators


def test_clock_comparison_allows_for_the_time_of_the_call() -> None:
    """The question takes a second each way; the other clock is 7 ms ahead."""
    now_ms = [1_000_000]

    async def state(slot: int) -> peer.StateResponse:
        now_ms[0] += 1000
        told = peer.StateResponse(unix_ms=now_ms[0] + 7)
        now_ms[0] += 1000
        return told

    clock = SimpleNamespace(now_ms=lambda: now_ms[0])
    node = SimpleNamespace(
        slot=0,
        peers=SimpleNamespace(state=state),
        replica=SimpleNamespace(engine=SimpleNamespace(clock=clock)),
    )
    _, ahead_ms = asyncio.run(Operators(cast(Node, node), str)._ask(1))
    assert ahead_ms == 7
