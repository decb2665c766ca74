"""A device that cannot read a page of a segment: it ends the server (SIGBUS), and never makes a wrong answer.

The store lies on a file system of its own (FUSE) whose reads of chosen pages fail from some moment on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta import mixing
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from kvmeta.engine.segment import Segment
from tests.crash.processes import fresh
from tests.crash.small import ids, locations
from tests.serving import ServerProcess, free_port
from tests.system.disks import needs

pytestmark = [
    pytest.mark.system,
    needs("fusermount3"),
    pytest.mark.skipif(find_spec("mfusepy") is None or not Path("/dev/fuse").exists(), reason="needs FUSE"),
]

TOP = 60_000
NEWER = 6_000  # the IDs below have a newer entry in an upper run
BATCH = 3_000
PATIENT = kvmeta.ClientOptions(timeout_s=90)
WAIT_S = 90.0
PAGES = (200, 201, 260)  # of the bottom run's segment: row pages 199, 200 and 259


class FailingDisk:
    """A store on a file system whose reads can be made to fail, and which entries lie where they fail."""

    def __init__(self, source: Path, mount: Path, switch: Path) -> None:
        self.store = mount / "store"
        self._switch = switch
        with EmbeddedStore(source / "store", "r") as store:
            self.segments = [segment for run in store.engine.trees[1].runs for segment in run.segments]
            bottom = max(self.segments, key=lambda segment: segment.record.rows)
            self.bottom = bottom.path.name
            self.lost, self.touched = self._of_pages(bottom, [page - 1 for page in PAGES])

    @staticmethod
    def _of_pages(segment: Segment, pages: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return bool[TOP] twice: which IDs' rows lie in row pages, and which in the pages' hash ranges."""
        mixed = mixing.mix(kvmeta.as_ids(ids(0, TOP)))
        order = np.lexsort((mixed[:, 1], mixed[:, 0]))
        page_rows = int(segment.header["page_rows"])
        lost, touched = np.zeros(TOP, np.bool_), np.zeros(TOP, np.bool_)
        for page in pages:
            lost[order[page * page_rows : (page + 1) * page_rows]] = True
            first, last = segment.page_range(page)
            touched |= (mixed[:, 0] >= first >> 64) & (mixed[:, 0] <= last >> 64)
        newer = np.arange(TOP) < NEWER
        return lost & ~newer, touched & ~newer

    def fail_reads(self, pages: tuple[int, ...] = PAGES) -> None:
        """From now on `pages` of the bottom run's segment cannot be read."""
        lines = [f"{self.bottom} {page * 4096} {(page + 1) * 4096}" for page in pages]
        self._switch.write_text("\n".join(lines))

    def read_again(self) -> None:
        """Let everything be read again."""
        self._switch.unlink()


def build(path: Path) -> None:
    """Make the store: a bottom run with every ID, an upper one with newer entries of the first."""
    with kvmeta.open(path) as store:
        store.dataset().put(ids(0, TOP), locations(ids(0, TOP), 1))
        store.compact()
        store.dataset().put(ids(0, NEWER), locations(ids(0, NEWER), 2))
        store.flush()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    from tests.system.failing_reads import mounted

    source = tmp_path / "source"
    source.mkdir()
    build(source / "store")
    with mounted(source, tmp_path / "mount", tmp_path / "switch") as mount:
        yield FailingDisk(source, mount, tmp_path / "switch")


def check(dataset: kvmeta.Dataset, lost: np.ndarray, touched: np.ndarray) -> None:
    """Assert that the lost IDs fail, no others than the touched may, and every answer is right."""
    every = ids(0, TOP)
    hit = dataset.lookup(every, on_error="mask")
    assert hit.failed[lost].all(), "an ID whose entry cannot be read was answered"
    assert not hit.failed[~touched].any(), "an ID fails whose entry can be read"
    answered = ~hit.failed
    assert hit.found[answered].all()
    expected = locations(every, 1)
    expected["tag"][:NEWER] = 2
    assert np.array_equal(hit.locations[answered], expected[answered])


class Load:
    """A client that puts new IDs and looks old ones up, batch after batch, whatever becomes of the server.

    Before `ask_all` is set it leaves out the IDs that may fail later: their pages must not be in memory then.
    """

    def __init__(self, target: str, may_fail: np.ndarray) -> None:
        self._target, self._may_fail = target, may_fail
        self._stop = threading.Event()
        self.ask_all = threading.Event()
        self.acknowledged: list[int] = []
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=work) for work in (self._put, self._look_up)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _put(self) -> None:
        with kvmeta.open(self._target, options=PATIENT) as store:
            step = 0
            while not self._stop.is_set():
                some = ids(TOP + step * 100, TOP + (step + 1) * 100)
                try:
                    store.dataset().put(some, locations(some, 3))
                except kvmeta.UnavailableError:
                    continue
                self.acknowledged.append(step)
                step += 1

    def _look_up(self) -> None:
        rng = np.random.default_rng(20_240_321)
        with kvmeta.open(self._target, options=PATIENT) as store:
            while not self._stop.is_set():
                some = rng.integers(0, TOP, 500).astype(np.uint64)
                if not self.ask_all.is_set():
                    some = some[~self._may_fail[some]]
                try:
                    hit = store.dataset().lookup(some, on_error="mask")
                except kvmeta.UnavailableError:
                    continue
                expected = locations(some, 1)
                expected["tag"][some < NEWER] = 2
                good = ~hit.failed
                if not (hit.found[good].all() and np.array_equal(hit.locations[good], expected[good])):
                    self.wrong.append("an answer is wrong")
                if (hit.failed & ~self._may_fail[some]).any():
                    self.wrong.append("an ID fails whose entry can be read")

    def check(self, dataset: kvmeta.Dataset) -> None:
        """Assert that no answer was wrong and nothing acknowledged is lost."""
        assert not self.wrong, self.wrong[:3]
        for step in self.acknowledged:
            some = ids(TOP + step * 100, TOP + (step + 1) * 100)
            hit = dataset.lookup(some)
            assert hit.found.all(), f"acknowledged step {step} is lost"
            assert np.array_equal(hit.locations, locations(some, 3))


@contextmanager
def server(disk: FailingDisk) -> Iterator[ServerProcess]:
    """Serve the store, supervised."""
    with ServerProcess(disk.store, "--supervise", port=free_port()) as process:
        yield process


def wait_for(process: ServerProcess, event: str, times: int = 1) -> None:
    """Wait until the log has an event so many times."""
    end = time.monotonic() + WAIT_S
    while [each["event"] for each in process.events].count(event) < times:
        assert time.monotonic() < end, process.events
        assert process.process.poll() is None, process.events
        time.sleep(0.02)


def test_a_read_error_costs_only_its_page_and_a_restart(disk: FailingDisk) -> None:
    with server(disk) as process:
        with Load(process.target, disk.touched) as load:
            while len(load.acknowledged) < 5:
                time.sleep(0.01)
            before = len(load.acknowledged)
            disk.fail_reads()
            load.ask_all.set()
            wait_for(process, "ready", 2)
            after = len(load.acknowledged)
            while len(load.acknowledged) < after + 5:
                time.sleep(0.01)
        told = [each["event"] for each in process.events]
        assert told.count("read error") == 1
        (damaged,) = [each for each in process.events if each["event"] == "damaged"]
        assert Path(damaged["path"]).name == disk.bottom
        assert len(load.acknowledged) > before
        with kvmeta.open(process.target, options=PATIENT) as store:
            check(store.dataset(), disk.lost, disk.touched)
            load.check(store.dataset())
            with pytest.raises(kvmeta.CorruptionError):
                list(store.dataset().scan())
            report = store.verify()
            assert [damage.page for damage in report.damages] == list(PAGES)
        assert process.stop() == 0, "SIGTERM goes through to the server, which drains"
    with server(disk) as process:  # remembered: the next start needs no second death
        with kvmeta.open(process.target, options=PATIENT) as store:
            check(store.dataset(), disk.lost, disk.touched)
        assert process.stop() == 0
        assert "read error" not in [each["event"] for each in process.events]
    disk.read_again()
    nothing = np.zeros(TOP, np.bool_)
    with EmbeddedStore(disk.store) as store:  # a device that reads again makes the store whole again
        check(store.dataset(), nothing, nothing)
        assert store.verify().ok


def test_a_read_error_in_a_merge_costs_only_its_page_and_a_restart(disk: FailingDisk) -> None:
    with server(disk) as process:
        with kvmeta.open(process.target, options=PATIENT) as store:
            store.dataset().put(ids(TOP, TOP + 100), locations(ids(TOP, TOP + 100), 3))
        disk.fail_reads()
        with (
            kvmeta.open(process.target, options=PATIENT) as store,
            suppress(kvmeta.UnavailableError, kvmeta.NotFoundError),  # the job goes with its server
        ):
            store.compact()
        wait_for(process, "ready", 2)
        with kvmeta.open(process.target, options=PATIENT) as store:
            store.compact()  # goes on without the damaged run
            check(store.dataset(), disk.lost, disk.touched)
            some = ids(TOP, TOP + 100)
            assert np.array_equal(store.dataset().lookup(some).locations, locations(some, 3))
            again = ids(0, TOP)[disk.touched]
            store.dataset().put(again, locations(again, 1))  # indexed again: newer than what cannot be read
            nothing = np.zeros(TOP, np.bool_)
            check(store.dataset(), nothing, nothing)
        assert process.stop() == 0
        assert [each["event"] for each in process.events].count("read error") == 1


def look_up(path: Path) -> None:
    """Open to read and ask for everything."""
    with kvmeta.open(path, mode="r") as store:
        store.dataset().lookup(ids(0, TOP), on_error="mask")


def test_a_read_error_kills_an_embedded_process_and_a_probe_recovers(disk: FailingDisk) -> None:
    disk.fail_reads()
    process = fresh(look_up, disk.store)
    process.join(WAIT_S)
    assert process.exitcode == -signal.SIGBUS
    for mode in ("r", "a"):
        with kvmeta.open(disk.store, mode, options=EngineOptions(probe=True)) as store:
            check(store.dataset(), disk.lost, disk.touched)
    process = fresh(look_up, disk.store)  # known by now: it is probed by itself
    process.join(WAIT_S)
    assert process.exitcode == 0


def test_verify_tells_of_pages_that_cannot_be_read(disk: FailingDisk) -> None:
    disk.fail_reads()
    command = [sys.executable, "-m", "kvmeta", "verify", "--store", str(disk.store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("the device cannot read it") == len(PAGES)


def test_an_unreadable_header_costs_only_its_segment(disk: FailingDisk) -> None:
    disk.fail_reads((0,))
    with server(disk) as process:
        wait_for(process, "ready")
        assert [each["event"] for each in process.events].count("read error") == 1
        with kvmeta.open(process.target, options=PATIENT) as store:
            old = np.arange(TOP) >= NEWER
            check(store.dataset(), old, old)
        assert process.stop() == 0
