"""Stores to damage, the faults to damage them with, and the judgement of their answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine import engine
from kvmeta.engine.page import PAGE_BYTES
from kvmeta.volumes import normal_uri
from tests.crash.faults import Fault
from tests.crash.small import MANUAL, ids, locations, open_store, put

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


def segments(store: Path) -> list[Path]:
    return sorted((store / "segments").glob("*.seg"))


def damage_a_page(segment: Path, page: int = 1) -> bytes:
    """Flip a byte of a row page; return the file as it was."""
    whole = segment.read_bytes()
    Fault("flipped", segment.name, page * PAGE_BYTES + 77, bit=3).do(segment.parent)
    return whole
