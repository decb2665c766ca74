"""Power cuts: what was acknowledged before the power went is there when it is back.

The writer and its operations are those of tests/crash/test_kill.py, on an ext4 file system that is shut down
without flushing its journal. Only acknowledgements read before the cut count.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.engine.options import EngineOptions
from tests.crash.processes import WAIT_S, fresh
from tests.crash.small import TINY, assert_holds, open_store, put
from tests.crash.test_kill import (
    SPACE,
    THREADS,
    State,
    observed,
    operation,
    outcomes,
    same,
    write_until_killed,
)
from tests.system.disks import LoopDisk, loop_disk, needs

pytestmark = [pytest.mark.system, needs("mkfs.ext4", "mount", "umount")]

SEED = 20_240_311
CUTS = 24


class CutOverAndOver:
    """A store on a disk whose power is cut, and what each thread of its writers has been told."""

    def __init__(self, disk: LoopDisk, options: EngineOptions) -> None:
        self.disk = disk
        self.path = disk.path / "store"
        self.options = options
        self.round = 0
        self.operations = 0
        self.states = [State(np.zeros(SPACE, np.uint32)) for _ in range(THREADS)]

    def run(self, delay_s: float) -> str | None:
        """Let a writer work for `delay_s`, cut the power, restore it; return what was lost, or None."""
        self.round += 1
        hear, tell = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        process = fresh(write_until_killed, self.path, self.round, self.states, tell, None, self.options)
        tell.close()
        sure, possible = [0] * THREADS, [0] * THREADS
        failures = []
        deadline = time.monotonic() + WAIT_S
        try:
            while time.monotonic() < deadline and hear.poll(max(0.0, deadline - time.monotonic())):
                what, thread, k, why = hear.recv()
                assert "failed" not in what, f"before the cut: {why}"
                if what == "open":
                    deadline = time.monotonic() + delay_s
                if what == "done":
                    sure[thread] = k + 1
            self.disk.cut_power()
            possible = list(sure)
            end = time.monotonic() + 0.2
            while hear.poll(max(0.0, end - time.monotonic())):
                what, thread, k, why = hear.recv()
                if what == "done":
                    possible[thread] = k + 1
                if "failed" in what:
                    failures.append((what, why))
        except EOFError:  # a page of a mapped segment could not be read any more
            pass
        finally:
            process.kill()
            process.join(WAIT_S)
            hear.close()
        self.operations += sum(sure)
        assert all(what == "failed, typed" for what, _ in failures), failures
        self.disk.unmount()
        self.disk.mount()
        return self._check(sure, possible)

    def _check(self, sure: list[int], possible: list[int]) -> str | None:
        try:
            store = open_store(self.path)
        except kvmeta.CorruptionError as error:
            return str(error)
        with store:
            assert store.verify().ok
            for thread in range(THREADS):
                now, state = observed(store, thread), self.states[thread]
                allowed = []
                for k in range(possible[thread] + 1):
                    stages = outcomes(state, operation(thread, self.round, k))
                    if k >= sure[thread]:
                        allowed += stages
                    state = stages[-1]
                if not any(same(now, each) for each in allowed):
                    wanted = allowed[0].marks
                    lost = int(np.count_nonzero((wanted != 0) & (now.marks == 0)))
                    differ = int(np.count_nonzero(wanted != now.marks))
                    return f"round {self.round}, thread {thread}: {lost} lost, {differ} differ"
                self.states[thread] = now
        return None


def test_no_power_cut_loses_an_acknowledged_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    with loop_disk(tmp_path) as disk:
        store = CutOverAndOver(disk, TINY)
        for _ in range(CUTS):
            assert store.run(float(rng.uniform(0.0, 0.9))) is None
        assert store.operations > 10 * CUTS


def test_without_syncs_power_cuts_do_lose_acknowledged_writes(tmp_path: Path) -> None:
    """The control: the test above can fail."""
    with loop_disk(tmp_path) as disk:
        lost = []
        for number in range(4):
            store = CutOverAndOver(disk, replace(TINY, sync=False))
            store.path = disk.path / f"store-{number}"
            lost.append(store.run(0.6))
        assert any(lost), "nothing was lost although nothing was synced"


def write_and_close(path: Path, round_: int, tell: Connection) -> None:
    """Write a little, close the store, say so and stay."""
    store = open_store(path)
    put(store, 0, 3000, mark=round_)
    if round_ % 2:
        store.flush()
    store.close()
    tell.send("closed")
    time.sleep(WAIT_S)


def test_a_store_whose_power_is_cut_right_after_its_close_opens_whole(tmp_path: Path) -> None:
    with loop_disk(tmp_path) as disk:
        for round_ in range(1, 7):
            hear, tell = multiprocessing.get_context("forkserver").Pipe(duplex=False)
            process = fresh(write_and_close, disk.path / "store", round_, tell)
            try:
                assert hear.poll(WAIT_S)
                assert hear.recv() == "closed"
                disk.cut_power()
            finally:
                process.kill()
                process.join(WAIT_S)
            disk.unmount()
            disk.mount()
            check_all(disk.path / "store", round_)


def check_all(path: Path, mark: int) -> None:
    """Assert that the store is whole, to a reader and to a writer."""
    for mode in ("r", "a"):
        with open_store(path, mode) as store:
            assert_holds(store, 0, 3000, mark=mark)
            assert store.verify().ok
