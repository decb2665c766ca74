"""Simulated processes: what is dead does nothing more, what is paused does it later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvmeta_server.simulator.loop import Process, SimulatedLoop


def told_by(story: Callable[[Process, list[str]], Any]) -> list[str]:
    """Return what a story notes."""
    loop, process, told = SimulatedLoop(), Process("p"), []  # type: ignore[var-annotated]
    loop.run_until_complete(loop.create_task(story(process, told)))
    loop.end()
    return told


async def work(told: list[str]) -> None:
    told.append("began")
    await asyncio.sleep(1.0)
    told.append("ended")


def test_a_killed_process_does_not_even_run_work_already_due() -> None:
    async def story(process: Process, told: list[str]) -> None:
        process.start(work(told))
        await asyncio.sleep(1.0)  # its timer is due at the same time, after this one's
        process.pause()
        await asyncio.sleep(1.0)
        process.resume()  # now its task is to be woken
        process.kill()
        process.start(work(told))
        await asyncio.sleep(5.0)

    assert told_by(story) == ["began"]


def test_a_paused_process_goes_on_where_it_was() -> None:
    async def story(process: Process, told: list[str]) -> None:
        process.start(work(told))
        await asyncio.sleep(0.5)
        process.pause()
        await asyncio.sleep(9.0)
        assert told == ["began"]
        process.resume()
        await asyncio.sleep(0.1)

    assert told_by(story) == ["began", "ended"]
