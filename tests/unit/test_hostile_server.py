"""The SDKs against a server that answers nonsense, and connections that are closed under calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

import kvmeta
from kvmeta.protocol.methods import METHODS
from kvmeta.v1 import kvmeta_pb2 as pb
from tests.patience import HANG_S, until

IDS = kvmeta.ids_from_ints(np.arange(10, dtype=np.uint64))
LOCATIONS = np.zeros(10, kvmeta.LOCATION)
DESCRIBED = pb.DescribeResponse(batch_rows_max=4).SerializeToString()
LISTED = pb.ListDatasetsResponse(names=["default"]).SerializeToString()


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Describes itself rightly; any other call gets `reply`. `arrived` has the names of calls that came."""

    def __init__(self, reply: Callable[[], bytes], arrived: list[str]) -> None:
        self.reply, self.arrived = reply, arrived

    def service(self, details: Any) -> Any:
        known = {"Describe": DESCRIBED, "ListDatasets": LISTED}
        name = details.method.rsplit("/", 1)[1]
        self.arrived.append(name)
        answer = known.get(name)
        return grpc.unary_unary_rpc_method_handler(lambda raw, context: answer or self.reply())


@contextmanager
def hostile(reply: Callable[[], bytes], arrived: list[str] | None = None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Handler(reply, [] if arrived is None else arrived),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"kvmeta://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("reply", [b"\xff\xff\xff", b"", b"\x0a\x02\x0a\x00"])
def test_a_nonsense_reply_raises_an_error(reply: bytes) -> None:
    nothing = reply != b"\xff\xff\xff"  # an empty message is what a put's reply is

    async def awaited(target: str) -> None:
        async with kvmeta.aio.open(target) as store:
            entries = await store.dataset()
            for call in (entries.lookup(IDS), entries.get(IDS[:1])):
                with pytest.raises(kvmeta.UnavailableError, match="malformed"):
                    await call
            with pytest.raises(kvmeta.OutcomeUnknownError):
                await entries.insert(IDS, LOCATIONS)
            if not nothing:
                with pytest.raises(kvmeta.OutcomeUnknownError):
                    await entries.put(IDS, LOCATIONS)

    with hostile(lambda: reply) as target:
        with kvmeta.open(target) as store:
            entries = store.dataset()
            with pytest.raises(kvmeta.UnavailableError):
                entries.lookup(IDS)
            with pytest.raises(kvmeta.OutcomeUnknownError):
                entries.insert(IDS, LOCATIONS)
            if not nothing:
                with pytest.raises(kvmeta.OutcomeUnknownError):
                    entries.put(IDS, LOCATIONS)
        asyncio.run(awaited(target))


def test_closing_a_store_fails_its_calls_under_way() -> None:
    go = threading.Event()
    arrived: list[str] = []
    in_two_lookups = 1 + 3  # messages, of up to 4 IDs each

    def reply() -> bytes:
        go.wait(HANG_S)
        return b""

    async def awaited(target: str) -> None:
        async with kvmeta.aio.open(target) as store:
            entries = await store.dataset()
            calls = [
                entries.lookup(IDS[:2]),
                entries.lookup(IDS),
                entries.get(IDS[:1]),
                entries.put(IDS, LOCATIONS),
            ]
            tasks = [asyncio.create_task(call) for call in calls]
            while arrived.count("Lookup") < in_two_lookups + 1 or "Write" not in arrived:
                await asyncio.sleep(0.01)
            await store.close()
            for task, kind in zip(tasks, [kvmeta.InputError] * 3 + [kvmeta.OutcomeUnknownError], strict=True):
                with pytest.raises(kind, match="closed meanwhile"):
                    await task

    with hostile(reply, arrived) as target:
        with kvmeta.open(target) as store:
            entries = store.dataset()
            ends: list[BaseException] = []

            def look(ids: Any) -> None:
                try:
                    entries.lookup(ids) if len(ids) > 1 else entries.insert(ids, LOCATIONS[:1])
                except BaseException as error:  # noqa: BLE001 - looked at below
                    ends.append(error)

            threads = [threading.Thread(target=look, args=(ids,)) for ids in (IDS[:2], IDS, IDS[:1])]
            for thread in threads:
                thread.start()
            until(
                lambda: arrived.count("Lookup") == in_two_lookups and "Write" in arrived,
                f"not all calls come: {arrived}",
            )
            store.close()
            for thread in threads:
                thread.join(HANG_S)
            kinds = sorted(type(end).__name__ for end in ends)
            assert kinds == ["InputError", "InputError", "OutcomeUnknownError"]
        arrived.clear()
        asyncio.run(awaited(target))
        go.set()


def test_an_interrupt_inside_grpc_costs_only_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def future(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with hostile(lambda: b"") as target, kvmeta.open(target) as store:
        transport = store.connection._transport
        entries = store.dataset()
        ((server, before),) = transport._channels.items()
        transport._stubs[(server, METHODS["Lookup"].path)] = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            entries.lookup(IDS)
        assert store.datasets() == ["default"]
        assert transport._channels[server] is not before
        before.close()


def test_closing_a_store_during_a_load_fails_the_load() -> None:
    def batches() -> Iterator[Any]:
        yield IDS[:4], LOCATIONS[:4]
        yield IDS[4:8], LOCATIONS[4:8]
        store.close()
        yield IDS[8:], LOCATIONS[8:]

    go = threading.Event()

    def reply() -> bytes:
        go.wait(HANG_S)
        return b""

    with hostile(reply) as target:
        store = kvmeta.open(target)
        with pytest.raises((kvmeta.OutcomeUnknownError, kvmeta.InputError), match="closed meanwhile"):
            store.dataset().load(batches())
        go.set()


def test_a_cancelled_task_is_cancelled_and_leaves_its_store_usable() -> None:
    slow = threading.Event()
    arrived: list[str] = []

    def reply() -> bytes:
        slow.wait(HANG_S)
        return b""

    async def awaited(target: str) -> None:
        async with kvmeta.aio.open(target) as store:
            entries = await store.dataset()
            for call in (entries.lookup(IDS), entries.get(IDS[:1])):
                arrived.clear()
                task = asyncio.create_task(call)
                while "Lookup" not in arrived:
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await store.datasets() == ["default"]

    with hostile(reply, arrived) as target:
        asyncio.run(awaited(target))
        slow.set()
