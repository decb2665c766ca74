"""Merges: resumable at every segment, older versions never win, tombstones stay while they hide something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions

OPTIONS = EngineOptions(
    batch_rows_max=1000,
    memtable_rows_max=1000,
    segment_bytes_max=64 << 10,
    fan_out=4,
    merge_step_rows=1000,
    load_rows_max=1000,
    background=False,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "catalog", options=OPTIONS) as store:
        yield store


def ids(n: int, start: int = 0) -> np.ndarray:
    return kvmeta.ids_from_ints(np.arange(start, start + n, dtype=np.uint64))


def at(n: int, offset: int) -> np.ndarray:
    loc = np.zeros(n, kvmeta.LOCATION)
    loc["offset"] = offset
    return loc


def steps(store: EmbeddedStore, count: int = 10**6) -> int:
    done = 0
    while done < count and store.engine.background.step():
        done += 1
    return done


@pytest.mark.slow
def test_a_merge_is_cut_into_steps_and_answers_are_right_after_each(store: EmbeddedStore) -> None:
    ds = store.dataset()
    for k in range(8):
        ds.put(ids(5000), at(5000, k + 1))
    ds.delete(ids(100))
    store.flush()
    taken = 0
    while store.engine.background.step():
        taken += 1
        hit = ds.lookup(ids(5000))
        assert (hit.found == (np.arange(5000) >= 100)).all()
        assert (hit.locations["offset"][100:] == 8).all()
        assert sum(len(page) for page in ds.scan()) == 4900
    assert taken > 10


def test_a_merge_interrupted_at_any_step_resumes_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "catalog"
    with EmbeddedStore(path, options=OPTIONS) as store:
        ds = store.dataset()
        for k in range(6):
            ds.put(ids(3000, k * 2000), at(3000, k + 1))
        store.flush()
    expected = np.minimum(np.arange(13_000) // 2000, 5) + 1
    merging, rounds = True, 0
    while merging:
        with EmbeddedStore(path, options=OPTIONS) as store:
            merging = steps(store, 7) == 7
            rounds += 1
            hit = store.dataset().lookup(ids(13_000))
            assert hit.found.all()
            assert (hit.locations["offset"] == expected).all()
            assert store.verify().ok
            named = [s.record.number for tree in store.engine.trees.values() for s in tree.view.segments]
    assert rounds > 2
    assert len(list((path / "segments").iterdir())) == len(named)


def test_a_merge_deletes_input_segments_behind_its_frontier(store: EmbeddedStore) -> None:
    ds = store.dataset()
    ds.put(ids(20_000), at(20_000, 1))
    store.compact()
    ds.put(ids(20_000), at(20_000, 2))
    store.flush()
    largest = 0
    for _ in iter(lambda: store.engine.background.step(), False):
        largest = max(largest, sum(f.stat().st_size for f in (store.engine.path / "segments").iterdir()))
    store.compact()
    final = sum(f.stat().st_size for f in (store.engine.path / "segments").iterdir())
    assert largest < 3 * final


def test_a_load_never_replaces_puts_made_after_it(store: EmbeddedStore) -> None:
    ds = store.dataset()

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield ids(2000), at(2000, 1)
        ds.put(ids(500), at(500, 2))  # while the load is under way: it becomes visible later, so it wins
        yield ids(10, 5000), at(10, 1)

    ds.load(batches())
    assert (ds.lookup(ids(2000)).locations["offset"] == 1).all()
    ds.put(ids(500), at(500, 3))
    store.flush()
    ds.load([(ids(1000, 1000), at(1000, 4))])
    for change in (lambda: None, store.flush, lambda: steps(store), store.compact):
        change()
        offsets = ds.lookup(ids(2000)).locations["offset"]
        assert (offsets[:500] == 3).all()
        assert (offsets[500:1000] == 1).all()
        assert (offsets[1000:] == 4).all()


def test_an_older_version_in_a_newer_run_does_not_win(store: EmbeddedStore) -> None:
    ds = store.dataset()
    ds.put(ids(1000), at(1000, 1))
    seen = ds.lookup(ids(1000)).versions
    ds.put(ids(500), at(500, 2))
    store.flush()
    # The relocates carry versions just above the first put: older than the second put's, in a newer run.
    relocated = ds.relocate(ids(1000), at(1000, 3), seen).relocated
    assert (relocated == (np.arange(1000) >= 500)).all()
    store.flush()
    ds.delete(ids(100, 900))
    store.flush()
    for change in (lambda: None, lambda: steps(store), store.compact):
        change()
        hit = ds.lookup(ids(1000))
        assert (hit.found == (np.arange(1000) < 900)).all()
        assert (hit.locations["offset"][:500] == 2).all()
        assert (hit.locations["offset"][500:900] == 3).all()


def test_tombstones_stay_until_a_merge_reaches_the_bottom_run(store: EmbeddedStore) -> None:
    ds = store.dataset()
    ds.put(ids(4000), at(4000, 1))
    store.compact()
    for start in range(0, 400, 100):
        ds.delete(ids(100, start))
        store.flush()
    steps(store)
    assert not ds.lookup(ids(400)).found.any()
    store.compact()
    assert not ds.lookup(ids(400)).found.any()
    stats = store.stats().datasets[0]
    assert (stats.rows, stats.tombstones, stats.runs) == (3600, 0, 1)


def test_a_merge_drops_expired_entries(store: EmbeddedStore) -> None:
    ds = store.create_dataset("brief", ttl_s=1e-3)
    ds.put(ids(1000), at(1000, 1))
    store.compact()
    store.compact()
    assert next(d for d in store.stats().datasets if d.name == "brief").rows == 0


def test_only_upper_runs_carry_filters_unless_the_dataset_asks(store: EmbeddedStore) -> None:
    plain, asked = store.dataset(), store.create_dataset("dedup", bottom_filter=True)
    for ds in (plain, asked):
        ds.put(ids(1000), at(1000, 1))
    store.flush()

    def filters(name: str) -> list[int]:
        return [int(s.header["filter_blocks"]) for s in store.engine.tree(name).view.segments]

    assert min(filters("default")) > 0
    store.compact()
    assert filters("default") == [0]
    assert min(filters("dedup")) > 0
    assert not asked.lookup(ids(1000, 10**6)).found.any()


def test_a_rarely_written_dataset_does_not_stop_log_trimming(tmp_path: Path) -> None:
    options = EngineOptions(batch_rows_max=500, memtable_rows_max=1000, wal_rows_max=3000, background=False)
    with EmbeddedStore(tmp_path / "catalog", options=options) as store:
        seldom, busy = store.create_dataset("seldom"), store.dataset()
        seldom.put(ids(3), at(3, 1))
        for k in range(10):
            busy.put(ids(500, 500 * k), at(500, 2))
            steps(store)
        anchor = store.engine.manifest.head.anchor.sequence
        assert store.engine.position().sequence - anchor <= 8
        assert seldom.lookup(ids(3)).found.all()
    with EmbeddedStore(tmp_path / "catalog", "r") as store:
        assert store.dataset("seldom").lookup(ids(3)).found.all()
        assert store.dataset().lookup(ids(5000)).found.all()


def test_a_merge_frees_the_disk_space_behind_its_frontier(tmp_path: Path) -> None:
    """A removed file keeps its space while it is mapped: a merge may not hold on to what lies behind it."""
    options = EngineOptions(segment_bytes_max=64 << 10, merge_step_rows=2048, background=False)
    deleted: list[int] = []
    with kvmeta.open(tmp_path / "store", options=options) as store:
        random = np.random.default_rng(1)
        for _ in range(2):
            ids = random.integers(0, 256, (40_000, 16), np.uint8)
            store.dataset().load([(ids, np.zeros(40_000, kvmeta.LOCATION))])

        def note(_done: int, _total: int) -> None:
            lines = Path("/proc/self/maps").read_text().splitlines()
            deleted.append(sum("(deleted)" in line and str(tmp_path) in line for line in lines))

        store.compact(progress=note)
    assert len(deleted) > 10
    assert max(deleted) <= 6
