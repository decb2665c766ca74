"""The contract suite: the same sentences hold for every kind of store."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.options import EngineOptions
from tests.contract.bridge import BridgedStore
from tests.contract.model import ModelStore
from tests.patience import until
from tests.serving import served

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


class StoreContract:
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

    def test_absent_ids_are_zero_columns(self, store: kvmeta.Store) -> None:
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

    def test_of_duplicates_in_a_put_the_last_wins(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids = kvmeta.ids_from_ints(np.arange(3000, dtype=np.uint64) % 1000)
        ds.put(ids, locations(3000))
        assert (ds.lookup(many(1000)).locations["offset"] == np.arange(2000, 3000) * 512).all()

    def test_of_duplicates_in_an_insert_the_first_wins(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids = kvmeta.ids_from_ints(np.arange(3000, dtype=np.uint64) % 1000)
        result = ds.insert(ids, locations(3000))
        assert (result.inserted == (np.arange(3000) < 1000)).all()
        assert (result.locations["offset"][1000:] == np.arange(2000) % 1000 * 512).all()
        assert (ds.lookup(many(1000)).locations["offset"] == np.arange(1000) * 512).all()

    def test_insert_answers_who_existed_with_their_location(self, store: kvmeta.Store) -> None:
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

    def test_at_127_moves_relocate_says_exhausted(self, store: kvmeta.Store) -> None:
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

    def test_ids_are_taken_in_every_form(self, store: kvmeta.Store) -> None:
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

    def test_shards_of_a_scan_are_disjoint_and_whole(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000))
        parts = [[p.ids for p in ds.scan(shard=(i, 7))] for i in range(7)]
        counts = [sum(map(len, part)) for part in parts]
        assert sum(counts) == 3000
        assert min(counts) > 300  # mixed IDs are uniform
        every = np.concatenate([ids for part in parts for ids in part])
        assert len(np.unique(every.view("u1").reshape(-1, 16), axis=0)) == 3000

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 100, pytest.param(1000, marks=pytest.mark.slow)])
    def test_any_number_of_shards_is_disjoint_and_whole(self, store: kvmeta.Store, count: int) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000))
        parts = [page.ids for i in range(count) for page in ds.scan(shard=(i, count))]
        every = np.sort(np.concatenate(parts))
        assert (every == np.sort(many(3000))).all()

    def test_a_sample_is_a_share_and_a_tag_a_filter(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        loc = locations(4000)
        loc["tag"] = np.arange(4000) % 4
        ds.put(many(4000), loc)
        assert 200 < sum(len(page) for page in ds.scan(sample=0.1)) < 600
        tagged = [page.locations for page in ds.scan(tag=2, page_rows=64)]
        assert sum(map(len, tagged)) == 1000
        assert (np.concatenate(tagged)["tag"] == 2).all()

    def test_a_load_wins_over_what_was_there_and_later_batches_over_earlier(
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

    def test_of_duplicates_in_a_loaded_batch_the_last_wins(self, store: kvmeta.Store) -> None:
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

    def test_datasets_are_apart_and_never_made_by_a_typo(self, store: kvmeta.Store) -> None:
        with pytest.raises(kvmeta.NotFoundError, match="typo"):
            store.dataset("typo")
        other = store.create_dataset("other")
        other.put(many(10), locations(10))
        assert not store.dataset().lookup(many(10)).found.any()
        assert store.datasets() == ["default", "other"]
        with pytest.raises(kvmeta.InputError):
            store.create_dataset("other")
        store.drop_dataset("other")
        assert store.datasets() == ["default"]
        with pytest.raises(kvmeta.NotFoundError):
            other.lookup(many(1))
        fresh = store.create_dataset("other")
        assert not fresh.lookup(many(10)).found.any()

    def test_the_default_dataset_stays(self, store: kvmeta.Store) -> None:
        with pytest.raises(kvmeta.InputError):
            store.drop_dataset("default")

    @pytest.mark.parametrize("name", ["", "a/b", "é", "x" * 129])
    def test_bad_dataset_names_are_refused(self, store: kvmeta.Store, name: str) -> None:
        with pytest.raises(kvmeta.InputError):
            store.create_dataset(name)

    def test_entries_expire_after_the_ttl(self, store: kvmeta.Store) -> None:
        ds = store.create_dataset("brief", ttl_s=0.2)
        ds.put(many(10), locations(10))
        until(lambda: not ds.lookup(many(10)).found.any(), "they never expire")
        assert list(ds.scan()) == []
        assert ds.insert(many(10), locations(10)).inserted.all()

    def test_volumes_are_numbered_from_one_and_found_again(self, store: kvmeta.Store, tmp_path: Path) -> None:
        first = store.volumes.add(tmp_path / "a.tar")
        second = store.volumes.add("s3://bucket/b.tar", name="b", size_bytes=10)
        assert [first, second] == [1, 2]
        assert store.volumes.add(tmp_path / "a.tar") == first
        assert store.volumes.get(1).uri == (tmp_path / "a.tar").as_uri()
        assert store.volumes.get("s3://bucket/b.tar").name == "b"
        assert [int(volume) for volume in store.volumes.list()] == [1, 2]
        assert store.volumes.get(locations(1)["volume"][0]) == first  # a number as a location has it
        store.volumes.move(second, "s3://other/b.tar")
        assert store.volumes.get(2).uri == "s3://other/b.tar"
        assert store.volumes.get(2).size_bytes == 10
        with pytest.raises(kvmeta.NotFoundError):
            store.volumes.get(3)
        with pytest.raises(kvmeta.NotFoundError):
            store.volumes.move(3, "s3://x/y")
        with pytest.raises(kvmeta.InputError):
            store.volumes.move(2, tmp_path / "a.tar")
        assert store.volumes.move("s3://other/b.tar", "s3://third/b.tar") == second
        with pytest.raises(kvmeta.NotFoundError):
            store.volumes.get("s3://other/b.tar")

    def test_files_are_read_through_their_locations(self, store: kvmeta.Store, tmp_path: Path) -> None:
        ds = store.dataset()
        files = [bytes([i]) * (i * 37 % 900) for i in range(200)]
        for half in range(2):
            part = files[half * 100 : half * 100 + 100]
            path = tmp_path / f"{half}.bin"
            path.write_bytes(b"".join(part))
            loc = np.zeros(100, kvmeta.LOCATION)
            loc["volume"] = store.volumes.add(path)
            loc["length"] = [len(each) for each in part]
            loc["offset"] = np.cumsum(loc["length"]) - loc["length"]
            loc["checksum"] = [google_crc32c.value(each) for each in part]
            ds.put(many(100, half * 100), loc)
        order = np.random.default_rng(2).permutation(200)
        got = ds.read(kvmeta.ids_from_ints(order.astype(np.uint64)))
        assert got == [files[i] for i in order]
        assert ds.read(ids_of(5, 999, 7)) == [files[5], None, files[7]]

    def test_a_file_that_does_not_match_its_checksum_fails_alone(
        self, store: kvmeta.Store, tmp_path: Path
    ) -> None:
        ds = store.dataset()
        path = tmp_path / "v.bin"
        path.write_bytes(b"good" + b"bad!")
        loc = np.zeros(3, kvmeta.LOCATION)
        loc["volume"], loc["length"], loc["offset"] = store.volumes.add(path), 4, [0, 4, 6]
        loc["checksum"] = [google_crc32c.value(b"good"), google_crc32c.value(b"goof"), 0]
        ds.put(many(3), loc)
        with pytest.raises(kvmeta.IncompleteBatchError, match="CRC-32C") as caught:
            ds.read(many(3))
        assert caught.value.failed.tolist() == [False, True, True]  # the last one ends behind the volume
        assert caught.value.partial == [b"good", None, None]

    def test_an_unregistered_volume_is_an_error_only_when_read(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(ids_of(1), locations(1, volume=99))
        assert ds.get(ids_of(1)).volume == 99
        with pytest.raises(kvmeta.NotFoundError, match="99"):
            ds.read(ids_of(1))

    def test_a_file_on_a_remote_volume_fails_alone(self, store: kvmeta.Store, tmp_path: Path) -> None:
        ds = store.dataset()
        (tmp_path / "v").write_bytes(b"here")
        loc = np.zeros(2, kvmeta.LOCATION)
        loc["volume"], loc["length"] = [store.volumes.add(tmp_path / "v"), store.volumes.add("s3://b/v")], 4
        ds.put(many(2), loc)
        with pytest.raises(kvmeta.IncompleteBatchError, match="s3://") as caught:
            ds.read(many(2))
        assert caught.value.partial == [b"here", None]

    def test_a_missing_or_offline_volume_fails_its_files(self, store: kvmeta.Store, tmp_path: Path) -> None:
        ds = store.dataset()
        loc = locations(2)
        loc["volume"] = [store.volumes.add(tmp_path / "gone"), store.volumes.add(tmp_path / "off")]
        (tmp_path / "off").write_bytes(bytes(5000))
        store.volumes.set_state(2, "offline")
        ds.put(many(2), loc)
        with pytest.raises(kvmeta.IncompleteBatchError, match="could not be read") as caught:
            ds.read(many(2))
        assert caught.value.failed.all()

    @pytest.mark.parametrize(
        "bad",
        [
            np.zeros(3, np.int64),
            np.zeros((3, 15), np.uint8),
            np.zeros(3, "S16"),
            np.zeros(3, "U4"),
            np.zeros((2, 2, 2), np.uint64),
            np.zeros(3, np.float64),
            [b"fifteen bytes.."],
            [1.5],
            [-1],
            [True],
            [None],
            [1 << 128],
            5.0,
            None,
        ],
        ids=lambda bad: str(getattr(bad, "dtype", bad)),
    )
    def test_ids_of_a_wrong_form_are_refused(self, store: kvmeta.Store, bad: object) -> None:
        ds = store.dataset()
        for call in (ds.lookup, ds.delete, ds.read, lambda ids: ds.put(ids, locations(3))):
            with pytest.raises(kvmeta.InputError):
                call(bad)

    @pytest.mark.parametrize(
        "bad",
        [
            np.zeros(3, np.uint64),
            np.zeros(2, kvmeta.LOCATION),
            np.zeros((3, 1), kvmeta.LOCATION),
            [(1, 2)],
            [(-1, 0, 0, 0, 0)] * 3,
            np.zeros(3, [(name, "f8") for name in kvmeta.LOCATION.names]),
            None,
        ],
        ids=str,
    )
    def test_locations_of_a_wrong_form_are_refused(self, store: kvmeta.Store, bad: object) -> None:
        ds = store.dataset()
        for call in (ds.put, ds.insert):
            with pytest.raises(kvmeta.InputError):
                call(many(3), bad)
        with pytest.raises(kvmeta.InputError):
            ds.load([(many(3), bad)])
        assert not ds.lookup(many(3)).found.any()

    def test_wrong_arguments_are_refused(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        for call in (
            lambda: ds.lookup(many(1), on_error="ignore"),
            lambda: ds.get(many(2)),
            lambda: ds.relocate(many(2), locations(2), np.zeros(1, np.uint64)),
            lambda: ds.relocate(many(2), locations(2), np.zeros(2, np.int64)),
            lambda: ds.scan(page_rows=0),
            lambda: ds.scan(page_rows="7"),
            lambda: ds.scan(tag="a"),
            lambda: ds.load((many(2), locations(2))),
            lambda: ds.load([1, 2]),
            lambda: ds.load(5),
            lambda: store.volumes.add(None),
            lambda: ds.lookup(bytearray(16)),
            lambda: store.create_dataset("brief", ttl_s="1"),
            lambda: ds.scan(tag=-1),
            lambda: ds.scan(sample=0),
            lambda: ds.scan(sample=1.5),
            lambda: ds.scan(shard=(3, 3)),
            lambda: list(ds.scan(after=b"short")),
            lambda: store.create_dataset("ttl", ttl_s=0),
            lambda: store.create_dataset("ttl", ttl_s=float("inf")),
            lambda: store.create_dataset("ttl", ttl_s=float("nan")),
            lambda: store.create_dataset("ttl", ttl_s=1e300),
            lambda: store.volumes.add("http://["),
            lambda: store.volumes.set_state(store.volumes.add("/x"), "lost"),
        ):
            with pytest.raises(kvmeta.InputError):
                call()

    def test_read_only_arrays_and_odd_strides_are_taken(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ids, loc = many(20), locations(20)
        ids.flags.writeable = loc.flags.writeable = False
        ds.put(ids[::2], loc[::2])
        assert (ds.lookup(ids).found == (np.arange(20) % 2 == 0)).all()
        assert (ds.lookup(ids[::-2]).found).sum() == 0

    def test_concurrent_inserts_of_one_id_have_one_winner(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        results: list[np.ndarray] = []

        def work(volume: int) -> None:
            results.append(ds.insert(many(500), locations(500, volume=volume)).inserted)

        threads = [threading.Thread(target=work, args=(volume,)) for volume in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (np.sum(results, axis=0) == 1).all()

    def test_threads_put_and_look_up_at_once(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        wrong: list[str] = []

        def work(k: int) -> None:
            for step in range(10):
                ids = many(200, k * 10_000 + step * 200)
                ds.put(ids, locations(200, volume=k))
                hit = ds.lookup(ids)
                if not (hit.found.all() and (hit.locations["volume"] == k).all()):
                    wrong.append(f"{k}/{step}")

        threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert sum(len(page) for page in ds.scan()) == 12_000

    def test_flush_and_compact_change_no_answer(self, store: kvmeta.Store) -> None:
        ds = store.dataset()
        ds.put(many(3000), locations(3000))
        ds.delete(many(1000))
        before = ds.lookup(many(3000))
        for change in (store.flush, store.compact, store.compact):
            change()
            after = ds.lookup(many(3000))
            assert (before.found == after.found).all()
            assert (before.locations == after.locations).all()
            assert (before.versions == after.versions).all()
        assert store.verify().ok

    def test_a_closed_store_says_so(self, store: kvmeta.Store) -> None:
        store.close()
        store.close()
        with pytest.raises(kvmeta.KvmetaError, match="closed"):
            store.dataset().lookup(many(1))


class TestModel(StoreContract):
    @pytest.fixture
    def store(self) -> kvmeta.Store:
        return ModelStore()


class TestEmbedded(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[kvmeta.Store]:
        with kvmeta.open(tmp_path / "catalog") as store:
            yield store


class TestEmbeddedWithTinyLimits(StoreContract):
    """Every flush, merge and boundary happens within a few thousand rows."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[kvmeta.Store]:
        with EmbeddedStore(tmp_path / "catalog", options=SMALL) as store:
            yield store


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "catalog", options=SMALL) as store:
        yield store


@pytest.mark.slow
class TestServer(StoreContract):
    """One server, asked by the blocking SDK; batches are split into small messages."""

    loads_whole = False

    @pytest.fixture
    def store(self, small_store: EmbeddedStore) -> Iterator[kvmeta.Store]:
        options = kvmeta.ClientOptions(lookup_rows=100, compression="lz4")
        with (
            served(small_store, limits__batch_rows_max=256) as target,
            kvmeta.open(target, options=options) as store,
        ):
            yield store


@pytest.mark.slow
class TestServerAsked(StoreContract):
    """One server, asked by the asyncio SDK."""

    loads_whole = False

    @pytest.fixture
    def store(self, small_store: EmbeddedStore) -> Iterator[kvmeta.Store]:
        with (
            served(small_store, limits__batch_rows_max=256) as target,
            BridgedStore(target, kvmeta.ClientOptions(lookup_rows=100)) as store,
        ):
            yield store
