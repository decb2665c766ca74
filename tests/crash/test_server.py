"""A server that is killed: nothing acknowledged is lost, and no answer is made up."""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.aio import AsyncDataset
from tests.patience import HANG_S, until
from tests.serving import PATIENT, ServerProcess, free_port

BRIEF = kvmeta.ClientOptions(timeout_s=1, connect_timeout_s=HANG_S)  # whose calls nobody is going to answer


def ids_of(step: int, n: int = 500) -> np.ndarray:
    return kvmeta.ids_from_ints(np.arange(step * n, (step + 1) * n, dtype=np.uint64))


def locations_of(step: int, n: int = 500) -> np.ndarray:
    out = np.zeros(n, kvmeta.LOCATION)
    out["volume"], out["offset"] = step + 1, np.arange(n)
    return out


class Writer(threading.Thread):
    """Writes batch after batch; keeps what was acknowledged and what is unknown."""

    def __init__(self, entries: kvmeta.Dataset, operation: str, first: int) -> None:
        super().__init__(daemon=True)
        self.entries, self.operation, self.step = entries, operation, first
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.unavailable: list[int] = []
        self.wrong: list[BaseException] = []
        self.all_named = True
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            step, self.step = self.step, self.step + 1
            try:
                if self.operation == "put":
                    self.entries.put(ids_of(step), locations_of(step))
                else:
                    result = self.entries.insert(ids_of(step), locations_of(step))
                    assert result.inserted.all(), "an insert answered for another attempt"
                self.acknowledged.append(step)
            except kvmeta.OutcomeUnknownError as error:
                self.unknown.append(step)
                self.all_named = self.all_named and error.failed is not None and bool(error.failed.all())
            except kvmeta.UnavailableError:
                self.unavailable.append(step)
            except BaseException as error:  # noqa: BLE001 - told by the test
                self.wrong.append(error)
                return


def test_a_server_killed_during_writes_loses_nothing_and_invents_nothing(tmp_path: Path) -> None:
    port = free_port()
    first = ServerProcess(tmp_path / "store", port=port)
    with kvmeta.open(first.target, options=PATIENT) as store:
        entries = store.dataset()
        puts = [Writer(entries, "put", k * 100_000) for k in range(2)]
        inserts = [Writer(entries, "insert", (k + 2) * 100_000) for k in range(2)]
        for writer in (*puts, *inserts):
            writer.start()
        writers = [*puts, *inserts]

        def each_acknowledged(counts: list[int]) -> bool:
            assert not any(writer.wrong for writer in writers)
            return all(len(writer.acknowledged) >= n for writer, n in zip(writers, counts, strict=True))

        until(lambda: each_acknowledged([20] * len(writers)), "the first server acknowledges too little")
        first.stop(signal.SIGKILL)
        more = [len(writer.acknowledged) + 20 for writer in writers]
        with ServerProcess(tmp_path / "store", port=port) as second:
            until(lambda: each_acknowledged(more), "the second server acknowledges too little")
            for writer in writers:
                writer.stop.set()
                writer.join(HANG_S)
            for writer in writers:
                assert not writer.wrong
                for step in writer.acknowledged:
                    hit = entries.lookup(ids_of(step))
                    assert hit.found.all()
                    assert (hit.locations == locations_of(step)).all()
            for writer in puts:  # a put is tried again until the server is back
                assert not writer.unknown
                assert writer.acknowledged == list(range(writer.acknowledged[0], writer.step))
            for writer in inserts:  # what was under way is unknown: it is there whole or not at all
                # One call, or two: gRPC may give the next one to the connection that it is still closing.
                assert not set(range(writer.acknowledged[0], writer.acknowledged[19])) & set(writer.unknown)
                assert max(writer.unknown, default=0) - min(writer.unknown, default=0) <= 1
                assert writer.all_named
                for step in writer.unknown:
                    assert len(set(entries.lookup(ids_of(step)).found.tolist())) == 1
            assert second.stop() == 0


def test_a_missing_server_is_unavailable_and_never_looks_empty(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(kvmeta.UnavailableError, match=f"127.0.0.1:{port}"):
        kvmeta.open(f"kvmeta://127.0.0.1:{port}", options=kvmeta.ClientOptions(connect_timeout_s=1))
    server = ServerProcess(tmp_path / "store", port=port)
    with kvmeta.open(server.target, options=PATIENT) as store:
        store.dataset().put(ids_of(0), locations_of(0))
    with kvmeta.open(server.target, options=BRIEF) as store:
        entries = store.dataset()
        server.stop(signal.SIGKILL)
        for call in (
            lambda: entries.lookup(ids_of(0)),
            lambda: entries.get(ids_of(0)[:1]),
            lambda: list(entries.scan()),
            lambda: entries.put(ids_of(1), locations_of(1)),
            lambda: entries.insert(ids_of(2), locations_of(2)),  # never reached a server: nothing is unknown
            lambda: store.datasets(),
        ):
            with pytest.raises(kvmeta.UnavailableError):
                call()


def test_a_server_raises_its_limit_of_open_files(tmp_path: Path) -> None:
    few = ("sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh")
    with ServerProcess(tmp_path / "store", before=few) as server:
        soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 200
        kvmeta.open(server.target).close()


def test_an_asyncio_client_outlives_its_server(tmp_path: Path) -> None:
    port = free_port()

    async def work() -> None:
        server = ServerProcess(tmp_path / "store", port=port)
        async with kvmeta.aio.open(server.target, options=PATIENT) as store:
            entries: AsyncDataset = await store.dataset()
            await entries.put(ids_of(0), locations_of(0))
            server.stop(signal.SIGKILL)
            gets = [asyncio.create_task(entries.get(i)) for i in range(20)]
            again = asyncio.create_task(entries.lookup(ids_of(0)))
            await asyncio.sleep(0.5)
            with ServerProcess(tmp_path / "store", port=port):
                assert (await again).found.all()
                assert all(await asyncio.gather(*gets))

    asyncio.run(work())


def test_a_stopped_server_finishes_its_calls_and_seals_its_store(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "store")
    with kvmeta.open(server.target, options=PATIENT) as store:
        store.dataset().put(ids_of(0), locations_of(0))
        assert server.stop(signal.SIGTERM) == 0
    assert [each["event"] for each in server.events] == ["starting", "opened", "ready", "draining", "closed"]
    with kvmeta.open(tmp_path / "store", mode="r") as local:
        assert local.dataset().lookup(ids_of(0)).found.all()
