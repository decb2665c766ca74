"""Who counts as gone, and who is asked for a sign of life, on simulated time."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from kvmeta.protocol.methods import Method
from kvmeta.transport.failures import CallFailed, Kind
from kvmeta.v1 import peer_pb2 as peer
from kvmeta_server.cluster.cluster_map import Member
from kvmeta_server.cluster.parties import Parties
from kvmeta_server.cluster.peers import NodePeers
from kvmeta_server.cluster.seams import NotReachedError, Pace, PeerError
from kvmeta_server.simulator.loop import SimulatedLoop

PROBE_S = 2.0


class Wire:
    """Answers each node but the `silent` ones; counts the calls by address and method."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.calls: Counter[tuple[str, str]] = Counter()

    async def call(self, address: str, method: Method, request: bytes, timeout_s: float) -> bytes:
        self.calls[address, method.name] += 1
        await asyncio.sleep(0.001)
        if address in self.silent:
            raise CallFailed(Kind.LATE, "no answer in time")
        return peer.StateResponse(name=address).SerializeToString() if method.name == "State" else b""

    async def close(self) -> None: ...


class Scene:
    """Node 0's peers 1 and 2, probed for as long as the test lasts."""

    def __init__(self) -> None:
        self.loop = SimulatedLoop()
        self.wire = Wire()
        nodes = {slot: Member(slot, f"n{slot}", f"at{slot}") for slot in range(3)}
        maps: Any = SimpleNamespace(
            current=SimpleNamespace(
                by_slot=nodes, members=list(nodes.values()), cluster_id=b"c", epoch=1, digest=1
            )
        )
        world: Any = SimpleNamespace(wire=self.wire, reads=None, writes=None, log=None)
        parties = Parties(0, bytes(16), 1, maps)
        self.peers = NodePeers(SimpleNamespace(slot=0), maps, parties, world, Pace(probe_s=PROBE_S))  # type: ignore[arg-type]

    def run(self, work: Any) -> None:
        async def live() -> None:
            self.peers.start()
            await asyncio.sleep(0.1)  # all are asked at first
            self.wire.calls.clear()
            await work(self)
            await self.peers.stop()

        try:
            self.loop.run_until_complete(self.loop.create_task(live()))
        finally:
            self.loop.end()


def test_only_silent_peers_are_probed() -> None:
    async def work(scene: Scene) -> None:
        for _ in range(100):
            await scene.peers.agree(1, "default", [0], 1)
            await asyncio.sleep(PROBE_S / 10)
        assert scene.wire.calls["at1", "State"] == 0
        assert scene.wire.calls["at2", "State"] == pytest.approx(10, abs=1)

    Scene().run(work)


def test_calls_to_a_silent_peer_fail_at_once_until_it_answers() -> None:
    async def work(scene: Scene) -> None:
        scene.wire.silent.add("at1")
        with pytest.raises(PeerError):
            await scene.peers.agree(1, "default", [0], 1)
        assert not scene.peers.likely(1)
        with pytest.raises(NotReachedError):
            await scene.peers.agree(1, "default", [0], 1)
        assert scene.wire.calls["at1", "Agree"] == 1
        scene.wire.silent.clear()
        await asyncio.sleep(PROBE_S + 0.1)
        assert scene.peers.likely(1)
        await scene.peers.agree(1, "default", [0], 1)

    Scene().run(work)


def test_a_silent_node_counts_as_gone_without_any_call() -> None:
    async def work(scene: Scene) -> None:
        scene.wire.silent.add("at2")
        await asyncio.sleep(PROBE_S + 0.1)
        assert scene.peers.likely(1)
        assert not scene.peers.likely(2)

    Scene().run(work)
