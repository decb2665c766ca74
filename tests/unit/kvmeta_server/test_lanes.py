"""Threads that answer for an event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from kvmeta.errors import InputError
from kvmeta_server.lanes import Lane
from kvmeta_server.refusal import Refused
from tests.patience import HANG_S


def test_answers_and_errors_come_back_to_their_callers() -> None:
    def answer(request: bytes) -> bytes:
        if request == b"bad":
            raise ValueError("bad request")
        return request.upper()

    async def work() -> None:
        lane = Lane("test", 3)
        futures = [lane.answer(answer, f"request {i}".encode()) for i in range(100)]
        bad = lane.answer(answer, b"bad")
        assert await asyncio.gather(*futures) == [f"REQUEST {i}".encode() for i in range(100)]
        with pytest.raises(ValueError, match="bad request"):
            await bad
        lane.close()

    asyncio.run(work())


def test_a_call_cancelled_while_queued_never_starts() -> None:
    begun: list[bytes] = []
    go = threading.Event()

    def answer(request: bytes) -> bytes:
        begun.append(request)
        go.wait(HANG_S)
        return request

    async def work() -> None:
        lane = Lane("test", 1)
        first = lane.answer(answer, b"first")
        second = lane.answer(answer, b"second")
        second.cancel()
        third = lane.answer(answer, b"third")
        go.set()
        assert await first == b"first"
        assert await third == b"third"
        lane.close()

    asyncio.run(work())
    assert begun == [b"first", b"third"]


def test_a_thread_survives_when_its_caller_leaves() -> None:
    begun, go = threading.Event(), threading.Event()

    def answer(request: bytes) -> bytes:
        begun.set()
        go.wait(HANG_S)
        return request

    async def work() -> None:
        lane = Lane("test", 1)
        first = lane.answer(answer, b"first")
        assert begun.wait(HANG_S)
        first.cancel()
        go.set()
        assert await lane.answer(answer, b"second") == b"second"
        lane.close()

    asyncio.run(work())


def test_a_cancelled_call_releases_its_request() -> None:
    go = threading.Event()

    async def work() -> None:
        lane = Lane("test", 1)
        lane.answer(lambda request: bytes(go.wait(HANG_S)), b"first")
        request = Watched()
        gone = weakref.ref(request)
        future = lane.answer(bytes, request)  # type: ignore[arg-type]
        del request
        future.cancel()
        await asyncio.sleep(0.01)
        assert gone() is None
        go.set()
        lane.close()

    asyncio.run(work())


class Watched:
    """Stands for bytes, which cannot be watched."""


def test_a_lane_takes_only_so_many_calls() -> None:
    go = threading.Event()

    async def work() -> None:
        lane = Lane("test", 1, waiting_max=2)
        first = lane.answer(lambda request: bytes(go.wait(HANG_S)), b"")
        while lane._queue.qsize():
            await asyncio.sleep(0.01)
        waiting = [lane.answer(bytes, b"a") for _ in range(2)]
        with pytest.raises(Refused, match="2 calls wait for a test thread"):
            lane.answer(bytes, b"a")
        go.set()
        await asyncio.gather(first, *waiting)
        lane.close()

    asyncio.run(work())


def test_a_library_panic_fails_its_call_but_not_the_thread() -> None:
    class Panic(BaseException):
        pass

    def answer(request: bytes) -> bytes:
        if request == b"panic":
            raise Panic("in Rust")
        if request == b"stop":
            raise StopIteration
        return request

    async def work() -> None:
        lane = Lane("test", 1)
        for request in (b"panic", b"stop"):
            with pytest.raises(RuntimeError, match=r"Panic|StopIteration"):
                await lane.answer(answer, request)
        assert await lane.answer(answer, b"still") == b"still"
        lane.close()

    asyncio.run(work())


def test_a_reported_error_releases_its_request() -> None:
    async def work() -> None:
        lane = Lane("test", 1)
        kept: list[weakref.ref[Any]] = []

        def answer(request: bytes) -> bytes:
            column = np.frombuffer(request, np.uint8)
            kept.append(weakref.ref(column))
            try:
                raise ValueError(column.nbytes)
            except ValueError:
                raise InputError("no such request") from None

        gc.disable()
        try:
            with pytest.raises(InputError):
                await lane.answer(answer, bytes(100))
            assert kept[0]() is None
        finally:
            gc.enable()
            lane.close()

    asyncio.run(work())
