"""Power cuts: what was acknowledged before the power went is there when it is back.

A sample of `make power-cuts`: the same writer (power_writer.py), the same aims.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.crash.processes import fresh
from tests.crash.small import assert_holds, open_store, put
from tests.patience import HANG_S
from tests.system import unsynced
from tests.system.disks import MAKE, loop_disk, needs
from tests.system.power_cuts import AIMS, aims_of, cut_over_and_over, cut_without_syncs
from tests.system.power_writer import WORK

pytestmark = pytest.mark.system

CUTS = 3 * len(AIMS)
file_systems = pytest.mark.parametrize(
    "filesystem",
    [pytest.param(name, marks=needs(make[0], "mount", "losetup")) for name, make in MAKE.items()],
)


@file_systems
def test_no_power_cut_loses_an_acknowledged_write(tmp_path: Path, filesystem: str) -> None:
    cuts = list(cut_over_and_over(tmp_path, filesystem, aims_of(filesystem, 0, CUTS)))
    assert [cut for cut in cuts if cut.wrong] == []
    assert len(cuts) == CUTS
    assert sum(cut.acknowledged for cut in cuts) > CUTS
    hit = {what for cut in cuts for what in cut.under_way}
    assert len(hit) > len(WORK) / 2, f"the cuts came amid nothing but {hit}"


@file_systems
def test_power_cuts_lose_acknowledged_writes_when_syncs_are_off(tmp_path: Path, filesystem: str) -> None:
    """The control: the test above can fail."""
    lost = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        lost += [cut.wrong for cut in cut_without_syncs(tmp_path / str(number), filesystem)]
    assert any(wrong and "lost" in wrong for wrong in lost), lost


@pytest.mark.parametrize("writer", [unsynced.node_files, unsynced.segments, unsynced.manifest])
@needs(MAKE["xfs"][0], "mount", "losetup")
def test_power_cuts_reveal_a_missing_sync(tmp_path: Path, writer: Callable[..., None]) -> None:
    """Planted bugs, on xfs: ext4 writes a file that is renamed over another out by itself."""
    aims = aims_of("xfs", 0, CUTS)
    cuts = list(cut_over_and_over(tmp_path, "xfs", aims, writer=writer))
    assert cuts[-1].wrong, f"{len(cuts)} cuts, and nothing was lost"


def write_and_close(path: Path, round_: int, tell: Connection) -> None:
    """Write a little, close the store, say so and stay."""
    store = open_store(path)
    put(store, 0, 3000, mark=round_)
    if round_ % 2:
        store.flush()
    store.close()
    tell.send("closed")
    time.sleep(HANG_S)


@file_systems
def test_a_power_cut_right_after_a_close_loses_nothing(tmp_path: Path, filesystem: str) -> None:
    with loop_disk(tmp_path, filesystem) as disk:
        for round_ in range(1, 7):
            hear, tell = multiprocessing.get_context("forkserver").Pipe(duplex=False)
            process = fresh(write_and_close, disk.path / "store", round_, tell)
            try:
                assert hear.poll(HANG_S)
                assert hear.recv() == "closed"
                disk.cut_power()
            finally:
                process.kill()
                process.join(HANG_S)
            disk.unmount()
            disk.mount()
            check_all(disk.path / "store", round_)


def check_all(path: Path, mark: int) -> None:
    """Assert that the store is whole, to a reader and to a writer."""
    for mode in ("r", "a"):
        with open_store(path, mode) as store:
            assert_holds(store, 0, 3000, mark=mark)
            assert store.verify().ok
