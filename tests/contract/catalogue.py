"""The contract of a catalogue: datasets, volumes, files, wrong arguments, threads, whatever the store."""

from __future__ import annotations

import threading
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

import kvmeta
from tests.contract.batches import ids_of, locations, many
from tests.patience import until


class CatalogueContract:
    """What holds of every store, and of what is in it."""

    def test_datasets_are_separate_and_a_mistyped_name_creates_none(self, store: kvmeta.Store) -> None:
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

    def test_a_handle_means_the_dataset_that_it_was_opened_on(self, store: kvmeta.Store) -> None:
        first = store.create_dataset("again")
        first.put(many(10), locations(10))
        seen = first.lookup(many(10)).versions
        store.drop_dataset("again")
        second = store.create_dataset("again")
        second.put(many(5), locations(5))
        opened = store.dataset("again")
        for stale in (
            lambda: first.lookup(many(10)),
            lambda: first.get(many(1)),
            lambda: first.put(many(10), locations(10)),
            lambda: first.insert(many(10), locations(10)),
            lambda: first.delete(many(10)),
            lambda: first.relocate(many(10), locations(10), seen),
            lambda: list(first.scan()),
            lambda: first.load([(many(10), locations(10))]),
        ):
            with pytest.raises(kvmeta.NotFoundError, match="again"):
                stale()
        assert opened.lookup(many(10)).found.sum() == 5

    def test_the_default_dataset_cannot_be_dropped(self, store: kvmeta.Store) -> None:
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

    def test_many_volumes_are_registered_at_once(self, store: kvmeta.Store) -> None:
        assert store.volumes.add([]) == []
        store.volumes.add("s3://one/b.tar", size_bytes=10)
        some = store.volumes.add(["s3://one/c.tar", "s3://one/b.tar", "s3://one/c.tar"])
        assert [int(volume) for volume in some] == [2, 1, 2]
        assert [volume.name for volume in some] == ["c.tar", "b.tar", "c.tar"]
        many = [f"s3://many/{number}" for number in range(1200)]
        assert [int(volume) for volume in store.volumes.add(many, size_bytes=range(1200))] == [
            *range(3, 1203)
        ]
        known = store.volumes.list()
        assert [volume.uri for volume in known] == ["s3://one/b.tar", "s3://one/c.tar", *many]
        assert [volume.size_bytes for volume in known] == [10, None, *range(1200)]
        store.volumes.move(700, "s3://moved")
        store.volumes.set_state(701, "offline")
        assert (store.volumes.get("s3://moved"), store.volumes.get(701).state) == (700, "offline")
        assert store.volumes.add(["s3://many/697", "s3://moved"]) == [1203, 700]
        for wrong in (
            lambda: store.volumes.add(["s3://x", None]),
            lambda: store.volumes.add(["s3://x"], name="x"),
            lambda: store.volumes.add(["s3://x"], size_bytes=[1, 2]),
        ):
            with pytest.raises(kvmeta.InputError):
                wrong()
        assert len(store.volumes.list()) == 1203

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

    def test_read_only_arrays_and_odd_strides_are_accepted(self, store: kvmeta.Store) -> None:
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

    def test_a_closed_store_refuses_calls(self, store: kvmeta.Store) -> None:
        store.close()
        store.close()
        with pytest.raises(kvmeta.KvmetaError, match="closed"):
            store.dataset().lookup(many(1))
