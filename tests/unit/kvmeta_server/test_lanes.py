"""Threads that answer for an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kvmeta_server.lanes import Lane


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


def test_a_call_that_nobody_waits_for_is_not_begun() -> None:
    begun: list[bytes] = []
    go = threading.Event()

    def answer(request: bytes) -> bytes:
        begun.append(request)
        go.wait(10)
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


def test_a_caller_that_leaves_meanwhile_ends_no_thread() -> None:
    go = threading.Event()

    def answer(request: bytes) -> bytes:
        go.wait(10)
        return request

    async def work() -> None:
        lane = Lane("test", 1)
        first = lane.answer(answer, b"first")
        await asyncio.sleep(0.01)
        first.cancel()
        go.set()
        assert await lane.answer(answer, b"second") == b"second"
        lane.close()

    asyncio.run(work())
