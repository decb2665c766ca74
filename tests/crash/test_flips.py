"""Damaged files of a store that has everything: damage is noticed, and no answer is wrong.

test_every_byte.py has each byte of each kind of file, of a smaller store.

One store is built, closed and copied for every fault; a second copy is taken while it is still open, which is
what a kill leaves. A fault counts as noticed when opening raises, a lookup or scan that touches it raises (or
marks the ID failed), or verify reports it. A false "absent" or a wrong location is never allowed.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rocksdict import Options, Rdict

import kvmeta
from kvmeta.engine.page import PAGE_BYTES
from tests.crash.damage import (
    SEED,
    Fixtures,
    build,
    faults,
    files_of,
    judge,
    no_second_look,
    segments,
    stores,
)
from tests.crash.faults import Fault
from tests.crash.processes import ends_well, fresh
from tests.crash.small import MANUAL, open_store, put

__all__ = ["no_second_look", "stores"]  # fixtures


def test_every_fault_in_a_closed_store_is_noticed(stores: Fixtures, tmp_path: Path) -> None:
    count, missed = 0, []
    for fault in faults(stores.closed, np.random.default_rng(SEED)):
        damaged = tmp_path / "store"
        shutil.copytree(stores.closed, damaged)
        fault.do(damaged)
        if not judge(damaged, stores.marks, str(fault), "ra"[count % 2]):
            missed.append(str(fault))
        shutil.rmtree(damaged)
        count += 1
    assert count > 250
    assert not missed, f"{len(missed)} of {count} faults were not noticed: {missed[:5]}"


def test_no_fault_in_a_killed_store_gives_a_wrong_answer(stores: Fixtures, tmp_path: Path) -> None:
    harmless = []
    alike = [name for name in files_of(stores.killed) if name.startswith("segments/")]
    skipped = {name for i, name in enumerate(alike) if i % 5}  # segments are those of the closed store
    for count, fault in enumerate(faults(stores.killed, np.random.default_rng(SEED + 1))):
        if fault.file == "SEAL" or fault.file in skipped:  # an older seal is read by nobody
            continue
        damaged = tmp_path / "store"
        shutil.copytree(stores.killed, damaged)
        fault.do(damaged)
        if not judge(damaged, stores.marks, str(fault), "ra"[count % 2]):
            harmless.append(fault)
        shutil.rmtree(damaged)
    # Of segments nothing passes; of the log only what no answer depends on.
    assert not [str(each) for each in harmless if each.file.startswith("segments/") or each.file == "KVMETA"]


def test_the_undamaged_stores_pass_the_same_judgement(stores: Fixtures, tmp_path: Path) -> None:
    for source in (stores.closed, stores.killed):
        shutil.copytree(source, tmp_path / source.name)
        assert not judge(tmp_path / source.name, stores.marks, source.name)


def test_swapped_pages_and_exchanged_segments_are_noticed(stores: Fixtures, tmp_path: Path) -> None:
    def swap_pages(store: Path) -> None:
        data = bytearray(segments(store)[0].read_bytes())
        one, two = slice(PAGE_BYTES, 2 * PAGE_BYTES), slice(2 * PAGE_BYTES, 3 * PAGE_BYTES)
        data[one], data[two] = data[two], data[one]
        segments(store)[0].write_bytes(data)

    def page_of_another_segment(store: Path) -> None:
        other = segments(store)[1].read_bytes()
        with open(segments(store)[0], "r+b") as file:
            file.seek(PAGE_BYTES)
            file.write(other[PAGE_BYTES : 2 * PAGE_BYTES])

    def exchange(store: Path) -> None:
        one, two = segments(store)[:2]
        one.rename(store / "kept")
        two.rename(one)
        (store / "kept").rename(two)

    def foreign(store: Path) -> None:
        shutil.copy(stores.foreign / "segments" / segments(store)[0].name, segments(store)[0])

    def foreign_log(store: Path) -> None:
        shutil.rmtree(store / "log")
        shutil.copytree(stores.foreign / "log", store / "log")

    def foreign_file(name: str) -> Callable[[Path], None]:
        return lambda store: shutil.copy(stores.foreign / name, store / name) and None  # type: ignore[func-returns-value]

    def no_log(store: Path) -> None:
        shutil.rmtree(store / "log")

    def no_segments(store: Path) -> None:
        shutil.rmtree(store / "segments")

    every: list[Callable[[Path], None]] = [
        swap_pages,
        page_of_another_segment,
        exchange,
        foreign,
        foreign_log,
        no_log,
        no_segments,
    ]
    every += [foreign_file("MARK"), foreign_file("KVMETA")]
    for source in (stores.closed, stores.killed):
        for number, fault in enumerate(every):
            damaged = tmp_path / f"{source.name}-{number}"
            shutil.copytree(source, damaged)
            fault(damaged)
            assert judge(damaged, stores.marks, f"{source.name}: {getattr(fault, '__name__', fault)}")


def test_an_older_copy_of_the_log_is_noticed(stores: Fixtures, tmp_path: Path) -> None:
    store, marks = build(tmp_path / "store")
    store.close()
    shutil.copytree(tmp_path / "store" / "log", tmp_path / "old-log")
    with open_store(tmp_path / "store", options=MANUAL) as again:
        put(again, 0, 100, mark=50)
    marks["default"][0:100] = 50
    shutil.rmtree(tmp_path / "store" / "log")
    shutil.copytree(tmp_path / "old-log", tmp_path / "store" / "log")
    assert judge(tmp_path / "store", marks, "older log")


def test_a_killed_store_missing_its_last_manifest_change_is_refused(tmp_path: Path) -> None:
    """No entry is missing then, so the chain of records says nothing: the manifest's generation does."""
    store = open_store(tmp_path / "open", options=MANUAL)
    put(store, 0, 1000)
    log = max((tmp_path / "open" / "log").glob("*.log"), key=lambda path: path.stat().st_size)
    size = log.stat().st_size
    store.volumes.add("/mnt/disk-1")
    shutil.copytree(tmp_path / "open", tmp_path / "killed")
    store.close()
    with open(tmp_path / "killed" / "log" / log.name, "r+b") as file:
        file.truncate(size)
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.CorruptionError, match="generation"):
            open_store(tmp_path / "killed", mode, options=MANUAL)


def open_damaged(store: Path) -> None:
    """Open in both modes; end well where both are refused."""
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.CorruptionError):
            open_store(store, mode, options=MANUAL)


@pytest.mark.parametrize("pattern", ["MANIFEST-*", "0*.log"])
def test_a_bit_that_makes_rocksdb_read_forever_counts_as_damage(
    stores: Fixtures, tmp_path: Path, pattern: str
) -> None:
    """It holds Python's lock meanwhile, so another process tries."""
    shutil.copytree(stores.killed, tmp_path / "store")
    path = max((tmp_path / "store" / "log").glob(pattern), key=lambda path: path.stat().st_size)
    (length,) = struct.unpack_from("<H", path.read_bytes(), 4)
    Fault("flipped", path.name, 7 + length + 6, bit=2).do(path.parent)  # the type of the second record
    ends_well(fresh(open_damaged, tmp_path / "store"))


def test_a_manifest_that_lost_a_row_is_refused(stores: Fixtures, tmp_path: Path) -> None:
    """Whatever RocksDB may forget: the sum over the rows tells."""
    shutil.copytree(stores.killed, tmp_path / "store")
    families = {"default": Options(raw_mode=True), "wal": Options(raw_mode=True)}
    log = Rdict(str(tmp_path / "store" / "log"), families["default"], {"wal": families["wal"]})
    log.delete(b"volumes/00000000")
    log.close()
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.CorruptionError, match="manifest"):
            open_store(tmp_path / "store", mode, options=MANUAL)
