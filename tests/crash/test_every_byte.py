"""Every byte of each kind of file, sampled: damage is detected or harmless (`make flips` tries them all)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvmeta.engine import engine
from kvmeta.engine import mark as marks
from kvmeta.engine.segment import Segment
from kvmeta_server.cluster import node_state
from tests.crash import flips, specimens
from tests.crash.faults import KINDS, Fault
from tests.crash.node_specimen import NodeSpecimen
from tests.crash.small import MANUAL, open_store
from tests.crash.specimens import DETECTED, DOCUMENTED, HARMLESS, WRONG, StoreSpecimen, WrongError

SEED = 20_240_318
EACH = 4  # cases of each kind for each file


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kvmeta-flips-", dir=flips.fast_directory()) as folder:
        flips.build(Path(folder) / "work")
        yield Path(folder) / "work"


def sampled() -> Callable[[list[Fault]], list[Fault]]:
    """Return what chooses some faults of each kind."""
    rng = np.random.default_rng(SEED)

    def choose(every: list[Fault]) -> list[Fault]:
        out = []
        for kind in KINDS:
            alike = [fault for fault in every if fault.kind == kind]
            out += [alike[at] for at in rng.permutation(len(alike))[:EACH]]
        return out

    return choose


def test_damage_is_detected_or_harmless_and_never_causes_a_wrong_answer(directory: Path) -> None:
    journal = flips.Journal(directory / "sampled.jsonl")
    for unit in flips.run(directory, flips.units(directory, sampled()), jobs=1):
        journal.note(unit)
    assert not journal.problems
    assert journal.counts.total() > 700
    assert {case for _, _, case, _ in journal.counts} == set(KINDS)
    assert {state for state, _, _, verdict in journal.counts if verdict == DOCUMENTED} == {"power cut"}
    passed = {
        (file, case)
        for state, file, case, verdict in journal.counts
        if (state, verdict) == ("closed", HARMLESS)
    }
    of_locks = {(lock, case) for lock in ("LOCK", "log/LOCK") for case in ("removed", "lengthened")}
    assert passed - of_locks <= {("MARK", "borrowed")}, "an older slot is not the one that counts"
    again = flips.Journal(directory / "sampled.jsonl")
    assert (again.done, again.counts) == (journal.done, journal.counts), "what is done is remembered"


def deal_and_die(directory: Path, hear: flips.Connection, tell: flips.Connection) -> None:
    """Stand in for `flips.deal`: the process ends, or stays silent, at some cases."""
    while (unit := hear.recv()) is not None:
        for fault in unit[1]:
            if fault.at == 3:
                os._exit(7)
            tell.send((DETECTED, ""))


def test_a_case_that_kills_its_process_is_reported_and_the_others_continue(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flips, "deal", deal_and_die)
    cases = [Fault("flipped", "KVMETA", at) for at in range(6)]
    (unit,) = flips.run(directory, [flips.Unit("u", "closed", "KVMETA", cases)], jobs=1)
    assert unit.verdicts == [DETECTED] * 3 + [WRONG] + [DETECTED] * 2
    assert len(unit.problems) == 1
    assert "status 7" in unit.problems[0]


def test_the_judge_catches_a_store_that_ignores_its_mark(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the judge sees acknowledgements go."""
    monkeypatch.setattr(engine, "_REFRESH_TRIES", 1)
    monkeypatch.setattr(marks, "read", lambda *_: (marks.Mark(), 1))
    specimen = StoreSpecimen(directory, "killed")
    (log,) = [name for name in specimen.files() if specimen.kind_of(name) == "log/*.log"]
    size = (directory / "killed" / log).stat().st_size
    judge = specimen.judge()
    with pytest.raises(WrongError):
        judge(Fault("cut", log, size - 40))
    judge.close()


def test_the_judge_catches_a_segment_that_skips_its_filter_check(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_REFRESH_TRIES", 1)
    with open_store(directory / "closed", "r", options=MANUAL) as store:
        every = [each for tree in store.engine.trees.values() for each in tree.view.segments]
    segment = next(each for each in every if each.header["filter_blocks"])
    file = str(segment.path.relative_to(directory / "closed"))
    at = int(segment.header["filter_offset"]) + 1  # where only a reader is asked
    judge = StoreSpecimen(directory, "closed").judge()
    assert judge(Fault("zeroed", file, at, 63)) == DETECTED
    monkeypatch.setattr(Segment, "_filter_good", lambda *_: True)
    with pytest.raises(WrongError):
        judge(Fault("zeroed", file, at, 63))
    judge.close()


def test_the_judge_catches_a_node_that_ignores_its_checksums(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_state, "_read", lambda disk, name: disk.read(name)[:-8])
    judge = NodeSpecimen(directory).judge()
    with pytest.raises(WrongError):
        judge(Fault("flipped", "node/COPIED", 100))
    judge.close()


def test_nothing_reads_rocksdbs_info_log_lock_or_older_options(directory: Path, tmp_path: Path) -> None:
    """So their bytes are sampled in the full form, too: a file that was read has an access time."""
    store = tmp_path / "store"
    shutil.copytree(directory / "killed", store)
    kinds = {name: specimens.kind_of(name) for name in specimens.files_of(store)}
    *older, _ = (name for name, kind in kinds.items() if kind == "log/OPTIONS")
    unread = [*older, *(name for name, kind in kinds.items() if kind in ("log/LOG", "log/LOCK"))]
    assert older
    (probe,) = (name for name, kind in kinds.items() if kind == "log/CURRENT")
    held = {name: os.open(store / name, os.O_RDONLY) for name in (*unread, probe)}
    for name in held:
        os.utime(store / name, ns=(0, (store / name).stat().st_mtime_ns))
    for mode in "rar":
        open_store(store, mode, options=MANUAL).close()
    read = {name for name, fd in held.items() if os.fstat(fd).st_atime_ns}
    for fd in held.values():
        os.close(fd)
    if not read:
        pytest.skip("this file system keeps no access times")
    assert read == {probe}
