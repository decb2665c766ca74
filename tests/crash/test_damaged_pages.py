"""A damaged page costs its own IDs, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.engine.page import PAGE_BYTES
from tests.crash.damage import (
    Fixtures,
    answers,
    damage_a_page,
    no_second_look,
    segments,
    stores,
)
from tests.crash.small import MANUAL, assert_holds, ids, locations, open_store, put

__all__ = ["no_second_look", "stores"]  # fixtures


def test_a_damaged_page_fails_its_ids_even_if_older_runs_hold_them(tmp_path: Path) -> None:
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 2000, mark=1)
    store.compact()
    old = segments(tmp_path)
    put(store, 0, 1000, mark=2)
    store.flush()
    (new,) = set(segments(tmp_path)) - set(old)
    store.close()
    whole = damage_a_page(new)
    failed = np.zeros(2000, np.bool_)
    for _ in range(2):  # and the same once it is opened again
        with open_store(tmp_path, options=MANUAL) as store:
            hit = store.dataset().lookup(ids(0, 2000), on_error="mask")
            assert 50 < int(hit.failed.sum()) < 400, "one page's IDs and those of its hash range"
            good = ~hit.failed
            assert hit.found[good].all()
            expected = np.where(np.arange(2000) < 1000, 2, 1)
            assert np.array_equal(hit.locations["tag"][good], expected[good])
            with pytest.raises(kvmeta.IncompleteBatchError) as caught:
                store.dataset().lookup(ids(0, 2000))
            assert np.array_equal(caught.value.failed, hit.failed)
            assert np.array_equal(caught.value.partial.found[good], hit.found[good])
            some = ids(0, 2000)[hit.failed]
            with pytest.raises(kvmeta.IncompleteBatchError) as caught:
                store.dataset().insert(some, locations(some, 9))
            assert caught.value.failed.all()
            assert not caught.value.partial.inserted.any()
            with pytest.raises(kvmeta.IncompleteBatchError) as caught:
                store.dataset().relocate(some, locations(some), np.ones(len(some), np.uint64))
            assert not caught.value.partial.relocated.any()
            with pytest.raises(kvmeta.CorruptionError) as damage:
                list(store.dataset().scan())
            assert damage.value.path == str(new)
            report = store.verify()
            assert [Path(each.path).name for each in report.damages] == [new.name]
            store.compact()
            assert np.array_equal(store.dataset().lookup(ids(0, 2000), on_error="mask").failed, hit.failed)
            failed = hit.failed
    new.write_bytes(whole)  # restored from a copy: fit again
    with open_store(tmp_path, options=MANUAL) as store:
        some = ids(0, 2000)[failed]
        put_again = locations(some, 3)
        store.dataset().put(some, put_again)
        hit = store.dataset().lookup(ids(0, 2000), on_error="mask")
        assert not hit.failed.any(), "a newer write answers for a damaged page"
        assert np.array_equal(hit.locations[failed], put_again)
        store.flush()
        assert not store.dataset().lookup(ids(0, 2000), on_error="mask").failed.any()


def test_damage_in_an_older_run_spares_ids_that_newer_runs_hold(tmp_path: Path) -> None:
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 2000, mark=1)
    store.compact()
    old = segments(tmp_path)
    put(store, 0, 1000, mark=2)
    store.flush()
    store.close()
    damage_a_page(old[0])
    with open_store(tmp_path, options=MANUAL) as store:
        hit = store.dataset().lookup(ids(0, 2000), on_error="mask")
        assert not hit.failed[:1000].any()
        assert np.array_equal(hit.locations[:1000], locations(ids(0, 1000), 2))
        assert hit.failed[1000:].any()
        assert hit.found[1000:][~hit.failed[1000:]].all()


def test_damage_to_a_tombstones_page_brings_no_deleted_entry_back(tmp_path: Path) -> None:
    store = open_store(tmp_path, options=MANUAL)
    put(store, 0, 2000, mark=1)
    store.compact()
    old = segments(tmp_path)
    store.dataset().delete(ids(0, 1000))
    store.flush()
    (tombstones,) = set(segments(tmp_path)) - set(old)
    store.close()
    damage_a_page(tombstones)
    for _ in range(3):
        with open_store(tmp_path, options=MANUAL) as store:
            hit = store.dataset().lookup(ids(0, 2000), on_error="mask")
            assert not (hit.found[:1000] & ~hit.failed[:1000]).any(), "a deleted entry came back"
            assert hit.failed.any()
            store.compact()
            put(store, 3000, 3100)
            store.flush()


def test_a_merge_that_meets_damage_keeps_every_other_entry(stores: Fixtures, tmp_path: Path) -> None:
    for number, segment in enumerate(segments(stores.closed)):
        store_path = tmp_path / f"store-{number}"
        shutil.copytree(stores.closed, store_path)
        last_page = segment.stat().st_size // PAGE_BYTES - 4
        damage_a_page(store_path / "segments" / segment.name, max(1, last_page // 2))
        with open_store(store_path, options=MANUAL) as store:
            store.compact()
            answers(store, stores.marks, f"after a merge over {segment.name}")
            put(store, 11_000, 12_000, mark=70)
            store.compact()
            assert_holds(store, 11_000, 12_000, mark=70)
        marks = {**stores.marks, "default": stores.marks["default"].copy()}
        marks["default"][11_000:12_000] = 70
        with open_store(store_path, "r", options=MANUAL) as store:
            answers(store, marks, f"after a merge over {segment.name}, opened again")
