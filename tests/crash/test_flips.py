"""Damaged files of a store that has everything: damage is noticed, and no answer is wrong.

test_every_byte.py has each byte of each kind of file, of a smaller store.

One store is built, closed and copied for every fault; a second copy is taken while it is still open, which is
what a kill leaves. A fault counts as noticed when opening raises, a lookup or scan that touches it raises (or
marks the ID failed), or verify reports it. A false "absent" or a wrong location is never allowed.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xxhash
from rocksdict import Options, Rdict

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine import engine
from kvmeta.engine.page import PAGE_BYTES
from kvmeta.volumes import normal_uri
from tests.crash.faults import Fault
from tests.crash.processes import ends_well, fresh
from tests.crash.small import MANUAL, assert_holds, ids, locations, open_store, put

SEED = 20_240_307
TOP = 12_000  # every ID below is asked for; most are absent
VOLUMES = ("/mnt/disk-1", "s3://bucket/prefix")


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep readers from looking again, as they do where a live writer may have moved the log on."""
    monkeypatch.setattr(engine, "_REFRESH_TRIES", 1)


@dataclass(frozen=True)
class Fixtures:
    """The store closed, as a kill leaves it, another store of the same shape, and what they hold."""

    closed: Path
    killed: Path
    foreign: Path
    marks: dict[str, np.ndarray]  # by dataset: of each ID below TOP, the mark it is held with, -1 = absent


def build(path: Path) -> tuple[EmbeddedStore, dict[str, np.ndarray]]:
    """Make a store with runs of both kinds, tombstones, two datasets, volumes and a log that is not empty."""
    store = open_store(path, options=MANUAL)
    marks = {name: np.full(TOP, -1) for name in ("default", "other")}
    store.create_dataset("other", bottom_filter=True)
    for uri in VOLUMES:
        store.volumes.add(uri)

    def fill(dataset: str, first: int, end: int, mark: int) -> None:
        put(store, first, end, mark, dataset)
        marks[dataset][first:end] = mark

    fill("default", 0, 6000, 1)
    fill("other", 0, 3000, 2)
    store.compact()
    fill("default", 3000, 8000, 3)
    store.dataset().delete(ids(500, 700))
    marks["default"][500:700] = -1
    store.flush()
    loaded = ids(9_000, 10_500)
    store.dataset().load([(loaded, locations(loaded, 4))])
    marks["default"][9_000:10_500] = 4
    fill("other", 2500, 3500, 5)
    store.flush()
    fill("default", 7500, 8200, 6)
    fill("other", 3500, 3600, 7)
    moved = ids(0, 300)
    store.dataset().relocate(moved, locations(moved, 8), store.dataset().lookup(moved).versions)
    marks["default"][0:300] = 8
    store.dataset().delete(ids(9_500, 9_510))
    marks["default"][9_500:9_510] = -1
    return store, marks


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Fixtures:
    root = tmp_path_factory.mktemp("stores")
    store, marks = build(root / "closed")
    shutil.copytree(root / "closed", root / "killed")
    store.close()
    build(root / "foreign")[0].close()
    return Fixtures(root / "closed", root / "killed", root / "foreign", marks)


def files_of(store: Path) -> list[str]:
    """Return the store's files whose bytes matter."""
    found = [str(path.relative_to(store)) for path in sorted(store.rglob("*")) if path.is_file()]
    return [name for name in found if not name.endswith("LOCK") and not name.startswith("log/LOG")]


def answers(store: EmbeddedStore, marks: dict[str, np.ndarray], what: str) -> bool:
    """Ask for every ID and scan; assert that no answer is wrong; return whether anything failed."""
    noticed = False
    assert [volume.uri for volume in store.volumes.list()] == [normal_uri(uri) for uri in VOLUMES], what
    assert store.datasets() == ["default", "other"], what
    for name, held in marks.items():
        every = ids(0, TOP)
        hit = store.dataset(name).lookup(every, on_error="mask")
        asked = ~hit.failed
        noticed |= bool(hit.failed.any())
        absent = asked & (held >= 0) & ~hit.found
        assert not absent.any(), f"{what}: {int(absent.sum())} IDs of {name} are falsely absent"
        risen = asked & (held < 0) & hit.found
        assert not risen.any(), f"{what}: {int(risen.sum())} IDs of {name} came out of nowhere"
        for mark in np.unique(held[held >= 0]):
            at = asked & (held == mark)
            assert np.array_equal(hit.locations[at], locations(every[at], int(mark))), (
                f"{what}: wrong locations"
            )
        try:
            found = [page.ids for page in store.dataset(name).scan(page_rows=3000)]
        except kvmeta.CorruptionError:
            noticed = True
        else:
            scanned = np.sort(np.concatenate(found))
            assert np.array_equal(scanned, np.sort(kvmeta.as_ids(every[held >= 0]))), (
                f"{what}: the scan is wrong"
            )
    return noticed


def judge(path: Path, marks: dict[str, np.ndarray], what: str, modes: str = "ra") -> bool:
    """Open the damaged store, ask it everything; return whether the damage was noticed."""
    noticed = True
    for mode in modes:
        try:
            store = open_store(path, mode, options=MANUAL)
        except (kvmeta.CorruptionError, kvmeta.FormatError):
            continue  # refused as a whole
        except BaseException as error:  # noqa: BLE001 - anything else is a fault of the engine
            pytest.fail(f'{what}: mode "{mode}" raised {error!r}')
        with store:
            seen = answers(store, marks, what)
            seen |= not store.verify().ok
        noticed &= seen
        if mode == "a" and seen:
            with suppress(kvmeta.CorruptionError), open_store(path, "r", options=MANUAL) as again:
                assert answers(again, marks, what) or not again.verify().ok, (
                    f"{what}: forgotten at the next open"
                )
    return noticed


def faults(store: Path, rng: np.random.Generator) -> Iterator[Fault]:
    """Yield some faults of every file of the store."""
    for name in files_of(store):
        data = (store / name).read_bytes()
        size = len(data)
        yield Fault("removed", name)
        yield Fault("lengthened", name)
        if not size:
            continue
        segment = name.startswith("segments/")
        positions = {0, size - 1, *rng.integers(0, size, 4 if segment else 6).tolist()}
        if segment:  # header, directory and filter, footer
            positions |= {
                100,
                PAGE_BYTES - 1,
                size - PAGE_BYTES + 40,
                size - PAGE_BYTES - 1,
                size - 2 * PAGE_BYTES,
            }
        for at in sorted(positions):
            yield Fault("flipped", name, at, bit=int(rng.integers(0, 8)))
        for part in (0, int(rng.integers(1, size)), size - 1):
            yield Fault("cut", name, part)
        at = int(rng.integers(0, size))
        if any(data[at : at + 600]):
            yield Fault("zeroed", name, at, 600)


def test_every_fault_in_a_closed_store_is_noticed_and_no_answer_is_wrong(
    stores: Fixtures, tmp_path: Path
) -> None:
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


def segments(store: Path) -> list[Path]:
    return sorted((store / "segments").glob("*.seg"))


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


def test_a_killed_store_whose_last_acknowledged_manifest_change_is_cut_off_is_refused(tmp_path: Path) -> None:
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
def test_a_bit_that_makes_rocksdb_read_for_ever_is_damage_like_any_other(
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
    log.delete(b"volume/00000002")
    log.close()
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.CorruptionError, match="manifest"):
            open_store(tmp_path / "store", mode, options=MANUAL)


def test_foreign_files_in_a_store_are_left_alone_and_change_nothing(stores: Fixtures, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(stores.closed, store)
    next_number = max(int(path.stem) for path in segments(store)) + 1
    taken = [store / "segments" / f"{next_number + i:08d}.seg" for i in range(3)]
    for i, path in enumerate(taken):
        shutil.copy(segments(stores.foreign)[i], path)
    others = [store / "notes.txt", store / "segments" / "notes.txt", store / "segments" / "x.seg"]
    for path in others:
        path.write_text("not kvmeta's")
    assert not judge(store, stores.marks, "foreign files")
    with open_store(store, options=MANUAL) as opened:
        put(opened, 10_500, 12_000, mark=60)
        opened.flush()
        assert_holds(opened, 10_500, 12_000, mark=60)
    for i, path in enumerate(taken):
        assert path.read_bytes() == segments(stores.foreign)[i].read_bytes(), (
            "another store's segment was overwritten"
        )
    assert all(path.read_text() == "not kvmeta's" for path in others)


def test_a_directory_that_is_no_store_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for mode in ("a", "x", "r"):
        with pytest.raises(kvmeta.FormatError, match=str(tmp_path)):
            open_store(tmp_path, mode)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    with pytest.raises(kvmeta.FormatError):
        open_store(tmp_path / "photo.jpg", "r")
    with pytest.raises(kvmeta.FormatError):
        open_store(tmp_path / "photo.jpg", "a")


def test_a_store_of_a_newer_format_is_refused_with_both_numbers(stores: Fixtures, tmp_path: Path) -> None:
    shutil.copytree(stores.closed, tmp_path / "store")
    path = tmp_path / "store" / "KVMETA"
    fields = json.loads(path.read_text().split("\n")[0])
    fields["format"] += 1
    text = json.dumps(fields)
    path.write_text(f"{text}\n{xxhash.xxh3_64_hexdigest(text.encode())}\n")
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.FormatError, match=r"format 2.*up to 1.*upgrade"):
            open_store(tmp_path / "store", mode)


def test_reading_a_path_without_a_store_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(kvmeta.NotFoundError, match="nowhere"):
        open_store(tmp_path / "nowhere", "r")
    (tmp_path / "empty").mkdir()
    with pytest.raises(kvmeta.FormatError, match="KVMETA"):
        open_store(tmp_path / "empty", "r")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("mode", ["a", "x", "r"])
@pytest.mark.parametrize(
    "name", ["n" * 300, "n/" * 3000 + "n", "a\0b"], ids=["long name", "long path", "NUL"]
)
def test_a_path_the_system_refuses_raises_a_typed_error(tmp_path: Path, mode: str, name: str) -> None:
    with pytest.raises(kvmeta.KvmetaError):
        open_store(tmp_path / name, mode)


def test_a_store_whose_identity_was_lost_opens_again_once_it_is_restored(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        put(store, 0, 100)
    identity = (tmp_path / "store" / "KVMETA").read_bytes()
    (tmp_path / "store" / "KVMETA").unlink()
    for mode in ("a", "x", "r"):
        with pytest.raises(kvmeta.FormatError, match="KVMETA"):
            open_store(tmp_path / "store", mode)
    (tmp_path / "store" / "KVMETA").write_bytes(identity)
    with open_store(tmp_path / "store") as store:
        assert_holds(store, 0, 100)


def test_a_damaged_log_is_refused_without_being_changed(stores: Fixtures, tmp_path: Path) -> None:
    """So that a copy of the damaged file, restored, makes the store whole again."""
    for source in (stores.closed, stores.killed):
        store = tmp_path / source.name
        shutil.copytree(source, store)
        log = max((store / "log").glob("0*"), key=lambda path: path.stat().st_size)
        whole = log.read_bytes()
        log.write_bytes(whole[: len(whole) // 2])
        for mode in ("a", "r", "a"):
            with pytest.raises(kvmeta.CorruptionError):
                open_store(store, mode, options=MANUAL)
        log.write_bytes(whole)
        assert not judge(store, stores.marks, source.name)


def damage_a_page(segment: Path, page: int = 1) -> bytes:
    """Flip a byte of a row page; return the file as it was."""
    whole = segment.read_bytes()
    Fault("flipped", segment.name, page * PAGE_BYTES + 77, bit=3).do(segment.parent)
    return whole


def test_a_damaged_page_fails_its_ids_one_by_one_whatever_older_runs_hold(tmp_path: Path) -> None:
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


def test_a_damaged_page_of_an_older_run_fails_only_ids_that_no_newer_run_has(tmp_path: Path) -> None:
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


def test_a_deleted_id_is_not_resurrected_where_the_page_of_its_tombstone_is_damaged(tmp_path: Path) -> None:
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
