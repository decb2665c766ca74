"""The contract of batches: lookups, writes, scans and loads, whatever the store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

import kvmeta
from kvmeta.engine.options import EngineOptions

SMALL = EngineOptions(
    batch_rows_max=256,
    memtable_rows_max=1024,
    segment_bytes_max=64 << 10,
    fan_out=3,
    merge_step_rows=500,
    load_rows_max=1500,
)


def ids_of(*numbers: int) -> np.ndarray:
    return kvmeta.ids_from_ints(list(numbers))


def many(n: int, start: int = 0) -> np.ndarray:
    return kvmeta.ids_from_ints(np.arange(start, start + n, dtype=np.uint64))


def locations(n: int, volume: int = 1, tag: int = 0) -> np.ndarray:
    out = np.zeros(n, kvmeta.LOCATION)
    out["volume"], out["tag"] = volume, tag
    out["offset"] = np.arange(n) * 512
    out["length"] = np.arange(n) % 5000
    out["checksum"] = np.arange(n) * 2654435761 % 2**32
    return out


class BatchContract:
    """What every store does. Subclasses give the `store` fixture."""

    loads_whole = True
    """Whether a load that fails leaves nothing."""

    def test_what_was_put_is_found(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids, loc = many(5000), locations(5000)
        ds.put(ids, loc)
        hit = ds.lookup(ids)
        assert hit.found.dtype == np.bool_
        assert hit.found.all()
        assert hit.locations.dtype == kvmeta.LOCATION
        assert (hit.locations == loc).all()
        assert hit.versions.dtype == np.uint64
        assert (hit.versions > 0).all()

    def test_absent_ids_get_zero_versions_and_locations(self, store: kvmeta.Store) -> None:
        hit = store.dataset().lookup(many(100))
        assert not hit.found.any()
        assert not hit.versions.any()
        assert hit.locations.tobytes() == bytes(24 * 100)

    def test_a_mixed_batch_answers_in_the_callers_order(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(1000), locations(1000))
        asked = np.random.default_rng(1).permutation(2000)
        hit = ds.lookup(kvmeta.ids_from_ints(asked.astype(np.uint64)))
        assert (hit.found == (asked < 1000)).all()
        assert (hit.locations["offset"][hit.found] == asked[asked < 1000] * 512).all()

    def test_empty_batches_are_fine(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        none, no_loc = many(0), locations(0)
        ds.put(none, no_loc)
        ds.delete(none)
        assert len(ds.lookup(none)) == 0
        assert len(ds.insert(none, no_loc)) == 0
        assert len(ds.relocate(none, no_loc, np.zeros(0, np.uint64))) == 0
        assert ds.read(none) == []
        assert ds.load([]) == 0
        assert ds.load([(none, no_loc)]) == 0
        assert list(ds.scan()) == []

    def test_a_later_put_wins(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000, volume=1))
        ds.put(many(1000, 500), locations(1000, volume=2))
        hit = ds.lookup(many(3000))
        assert (hit.locations["volume"] == np.where(np.isin(np.arange(3000), range(500, 1500)), 2, 1)).all()

    def test_a_put_keeps_the_last_of_duplicate_ids(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids = kvmeta.ids_from_ints(np.arange(3000, dtype=np.uint64) % 1000)
        ds.put(ids, locations(3000))
        assert (ds.lookup(many(1000)).locations["offset"] == np.arange(2000, 3000) * 512).all()

    def test_an_insert_keeps_the_first_of_duplicate_ids(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids = kvmeta.ids_from_ints(np.arange(3000, dtype=np.uint64) % 1000)
        result = ds.insert(ids, locations(3000))
        assert (result.inserted == (np.arange(3000) < 1000)).all()
        assert (result.locations["offset"][1000:] == np.arange(2000) % 1000 * 512).all()
        assert (ds.lookup(many(1000)).locations["offset"] == np.arange(1000) * 512).all()

    def test_insert_returns_the_locations_of_ids_that_existed(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(10), locations(10, volume=7))
        result = ds.insert(many(20), locations(20, volume=8))
        assert (result.inserted == (np.arange(20) >= 10)).all()
        assert (result.locations["volume"][:10] == 7).all()
        assert (ds.lookup(many(20)).locations["volume"] == np.where(np.arange(20) < 10, 7, 8)).all()

    def test_an_insert_can_be_followed_by_a_relocate(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(10), locations(10))
        result = ds.insert(many(20), locations(20, volume=8))
        assert (result.versions == ds.lookup(many(20)).versions).all()
        assert (result.locations == ds.lookup(many(20)).locations).all()
        assert ds.relocate(many(20), locations(20, volume=9), result.versions).relocated.all()

    def test_deleted_ids_are_absent_and_can_be_inserted_again(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(100), locations(100))
        ds.delete(many(50))
        assert (ds.lookup(many(100)).found == (np.arange(100) >= 50)).all()
        assert (ds.insert(many(100), locations(100)).inserted == (np.arange(100) < 50)).all()
        assert ds.lookup(many(100)).found.all()

    def test_relocate_takes_effect_only_on_the_version_seen(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(4), locations(4, volume=1))
        seen = ds.lookup(many(4)).versions
        ds.put(ids_of(1), locations(1, volume=5))
        ds.delete(ids_of(2))
        result = ds.relocate(many(5), locations(5, volume=9), np.append(seen, np.uint64(1)))
        assert result.relocated.tolist() == [True, False, False, True, False]
        assert [result.reason(i) for i in range(5)] == [
            "relocated",
            "changed",
            "absent",
            "relocated",
            "absent",
        ]
        assert ds.lookup(many(4)).locations["volume"].tolist() == [9, 5, 0, 9]
        assert ds.lookup(ids_of(0)).versions[0] == seen[0] + 1

    def test_a_repeated_id_relocates_once(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(ids_of(1), locations(1))
        seen = ds.lookup(ids_of(1, 1)).versions
        result = ds.relocate(ids_of(1, 1), locations(2, volume=3), seen)
        assert result.relocated.tolist() == [True, False]
        assert result.reason(1) == "repeated"

    def test_a_relocate_after_127_moves_reports_exhausted(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(ids_of(1), locations(1))
        for _ in range(127):
            assert ds.relocate(ids_of(1), locations(1), ds.lookup(ids_of(1)).versions).relocated[0]
        result = ds.relocate(ids_of(1), locations(1), ds.lookup(ids_of(1)).versions)
        assert not result.relocated[0]
        assert result.reason(0) == "exhausted"
        ds.put(ids_of(1), locations(1))
        assert ds.relocate(ids_of(1), locations(1), ds.lookup(ids_of(1)).versions).relocated[0]

    def test_a_put_or_delete_wins_over_a_relocated_entry(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(2), locations(2))
        ds.relocate(many(2), locations(2, volume=9), ds.lookup(many(2)).versions)
        ds.delete(ids_of(0))
        ds.put(ids_of(1), locations(1, volume=4))
        hit = ds.lookup(many(2))
        assert hit.found.tolist() == [False, True]
        assert hit.locations["volume"].tolist() == [0, 4]

    def test_every_form_of_ids_is_accepted(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        identity = uuid.uuid4()
        ds.put(["a key", b"sixteen bytes id", 17, identity], locations(4))
        assert ds.get("a key") == kvmeta.Location(1, 0, 0, 0, 0)
        assert ds.get(b"sixteen bytes id").offset == 512
        assert ds.get(17).offset == 1024
        assert ds.get(identity).offset == 1536
        assert ds.get(identity.bytes).offset == 1536
        assert ds.get("another key") is None

    def test_a_scan_sees_every_live_entry_once(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(5000), locations(5000))
        ds.delete(many(1000))
        pages = list(ds.scan(page_rows=700))
        assert all(len(page) <= 700 for page in pages)
        seen = np.concatenate([page.ids for page in pages])
        assert sorted(seen.tobytes()[i : i + 16] for i in range(0, 16 * len(seen), 16)) == sorted(
            each.tobytes() for each in many(4000, 1000)
        )
        found = ds.lookup(seen)
        assert (found.locations == np.concatenate([page.locations for page in pages])).all()
        assert (found.versions == np.concatenate([page.versions for page in pages])).all()

    def test_a_scan_continues_behind_a_cursor(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000))
        whole = np.concatenate([page.ids for page in ds.scan(page_rows=101)])
        first = next(iter(ds.scan(page_rows=101)))
        rest = np.concatenate([page.ids for page in ds.scan(page_rows=77, after=first.cursor)])
        assert (np.concatenate([first.ids, rest]) == whole).all()

    def test_seven_shards_of_a_scan_return_every_entry_once(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000))
        parts = [[p.ids for p in ds.scan(shard=(i, 7))] for i in range(7)]
        counts = [sum(map(len, part)) for part in parts]
        assert sum(counts) == 3000
        assert min(counts) > 300  # mixed IDs are uniform
        every = np.concatenate([ids for part in parts for ids in part])
        assert len(np.unique(every.view("u1").reshape(-1, 16), axis=0)) == 3000

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 100, pytest.param(1000, marks=pytest.mark.slow)])
    def test_any_number_of_shards_returns_every_entry_once(self, store: kvmeta.Store, count: int) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000))
        parts = [page.ids for i in range(count) for page in ds.scan(shard=(i, count))]
        every = np.sort(np.concatenate(parts))
        assert (every == np.sort(many(3000))).all()

    def test_a_scan_can_sample_entries_and_filter_them_by_tag(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        loc = locations(4000)
        loc["tag"] = np.arange(4000) % 4
        ds.put(many(4000), loc)
        assert 200 < sum(len(page) for page in ds.scan(sample=0.1)) < 600
        tagged = [page.locations for page in ds.scan(tag=2, page_rows=64)]
        assert sum(map(len, tagged)) == 1000
        assert (np.concatenate(tagged)["tag"] == 2).all()

    def test_a_load_replaces_older_entries_and_later_batches_replace_earlier_ones(
        self, store: kvmeta.Store
    ) -> None:
        ds = store.dataset()
        ds.put(many(2000), locations(2000, volume=1))
        rows = ds.load(
            [
                (many(3000, 1000), locations(3000, volume=2)),
                (many(1000, 1500), locations(1000, volume=3)),
            ]
        )
        assert rows == 4000
        expected = np.ones(4000)
        expected[1000:] = 2
        expected[1500:2500] = 3
        assert (ds.lookup(many(4000)).locations["volume"] == expected).all()
        ds.put(many(4000), locations(4000, volume=4))
        assert (ds.lookup(many(4000)).locations["volume"] == 4).all()

    def test_a_loaded_batch_keeps_the_last_of_duplicate_ids(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids = kvmeta.ids_from_ints(np.arange(4000, dtype=np.uint64) % 1000)
        ds.load([(ids, locations(4000))])
        assert (ds.lookup(many(1000)).locations["offset"] == np.arange(3000, 4000) * 512).all()

    def test_a_load_that_fails_leaves_nothing(self, store: kvmeta.Store) -> None:
        ds = store.dataset()

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield many(4000), locations(4000)
            raise RuntimeError("the caller's own")

        with pytest.raises(RuntimeError, match="the caller's own"):
            ds.load(batches())
        assert ds.lookup(many(4000)).found.any() != self.loads_whole
