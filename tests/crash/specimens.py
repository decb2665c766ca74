"""Specimens: a small store closed, killed, and with a mark that a power cut took back; and their judge.

    closed      every byte of the log is vouched for by SEAL
    killed      open while it was copied: the log has records that are in no run yet
    power cut   killed, and MARK is older than the last acknowledgements

A damaged copy is opened to read and to write and asked for everything. *Detected*: opening refused, IDs
failed, a scan raised, or verify named the damage; all that was answered is right. *Harmless*: every answer is
the right one, also after one more put and another opening. *Documented*: the same of an earlier acknowledged
state that the mark allows (docs/format.md, last section). Everything else is *wrong*.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

import kvmeta
from kvmeta.embedded import EmbeddedStore
from tests.crash import faults
from tests.crash.faults import Fault
from tests.crash.segment_reader import SegmentReader
from tests.crash.small import MANUAL, ids, locations, open_store, put

TOP = 480  # every ID below is asked for; some are absent
AFTER = 8  # IDs from TOP on that the put after damage writes
STATES = ("closed", "killed", "power cut")
DETECTED, HARMLESS, DOCUMENTED, WRONG = "detected", "harmless", "documented", "wrong"
VERDICTS = (DETECTED, HARMLESS, DOCUMENTED, WRONG)
_EVERY_BIT = ("log/*.log", "log/*.sst", "log/MANIFEST", "log/CURRENT")
"""What RocksDB judges by itself: one bit of a byte may mean more to it than another."""
_OTHERS = ("foreign", "older")  # another store of the same shape; this one before its last changes
_UNREAD = 128  # of a file that nobody reads each so many-th byte is tried
_TWIN = 16  # of one that has the form of another
_OPTIONS = 4  # of RocksDB's options, which are given anew at every opening
_TO_WRITE = {"segment": 16, "SEAL": 8, "log/OPTIONS": 8, "log/LOG": 8}
"""To write a store is opened for each so many-th tried byte of these, to read for all: a segment and the seal
are read by one code in both modes, and the others by none of ours."""
_REFUSED_TO_WRITE = 4  # as well where to read was refused, for a writer begins by reading as a reader does


class WrongError(AssertionError):
    """An answer is not the right one."""


@dataclass(frozen=True, eq=False)
class Held:
    """What a dataset answers for the IDs 0 … TOP + AFTER - 1."""

    found: np.ndarray
    locations: np.ndarray
    versions: np.ndarray

    @cached_property
    def order(self) -> np.ndarray:
        """Return where the IDs that are there lie in the columns, in the order of their bytes."""
        return in_order(self.found)


@dataclass(frozen=True)
class Answers:
    """Everything a store answers."""

    datasets: dict[str, Held]
    options: tuple[tuple[str, float | None], ...]
    volumes: tuple[kvmeta.Volume, ...]


@cache
def every_id() -> np.ndarray:
    """Return all IDs that are asked for."""
    return kvmeta.as_ids(ids(0, TOP + AFTER))


def in_order(there: np.ndarray) -> np.ndarray:
    """Return the places of those of all IDs that are `there`, in the order of the IDs' bytes."""
    places = np.flatnonzero(there)
    return places[np.argsort(every_id()[places])]


def answers_of(store: EmbeddedStore) -> Answers:
    """Return what an undamaged store answers."""
    held = {}
    for name in store.datasets():
        hit = store.dataset(name).lookup(every_id())
        held[name] = Held(hit.found, hit.locations, hit.versions)
    return Answers(held, _options_of(store), tuple(store.volumes.list()))


def _options_of(store: EmbeddedStore) -> tuple[tuple[str, float | None], ...]:
    return tuple(sorted((each.name, each.ttl_s) for each in store.stats().datasets))


def build(directory: Path) -> None:
    """Make the specimens below `directory`, what they are compared with, and `expected`."""
    directory.mkdir(parents=True, exist_ok=True)
    expected = _build(directory)
    _build(directory / "foreign")
    (directory / "expected").write_bytes(pickle.dumps(expected))


def _build(directory: Path) -> list[Answers]:
    """Make one store's states; return what it answered from its older mark on, the newest last."""
    work, older = directory / "closed", directory / "older"
    with open_store(work, options=MANUAL) as store:
        store.create_dataset("other", bottom_filter=True, ttl_s=1e9)
        store.volumes.add("/mnt/disk-1")
        store.volumes.add("s3://bucket/prefix")
        put(store, 0, 260, mark=1)
        put(store, 0, 40, mark=2, dataset="other")
        store.compact()
        put(store, 200, 400, mark=3)
        store.dataset().delete(ids(0, 20))
        store.flush()
    store = open_store(work, options=MANUAL)
    put(store, 390, 410, mark=4)
    shutil.copytree(work, older / "killed")
    acknowledged = [answers_of(store)]
    put(store, 36, 48, mark=5, dataset="other")
    acknowledged.append(answers_of(store))
    store.volumes.set_state("/mnt/disk-1", "offline")
    acknowledged.append(answers_of(store))
    moved = ids(30, 36)
    store.dataset().relocate(moved, locations(moved, 6), store.dataset().lookup(moved).versions)
    acknowledged.append(answers_of(store))
    store.dataset().delete(ids(395, 400))
    acknowledged.append(answers_of(store))
    shutil.copytree(work, directory / "killed")
    shutil.copytree(work, directory / "power cut")
    shutil.copy(older / "killed" / "MARK", directory / "power cut" / "MARK")
    store.close()
    shutil.copytree(older / "killed", older / "closed")
    open_store(older / "closed", options=MANUAL).close()
    return acknowledged


def kind_of(file: str) -> str:
    """Return what kind of file a store's file is."""
    name = Path(file).name
    if file.startswith("segments/"):
        return "segment"
    if not file.startswith("log/"):
        return name
    if name.endswith((".log", ".sst")):
        return f"log/*{Path(name).suffix}"
    return f"log/{name.split('-')[0]}" if name != "rocksdict-config.json" else "log/rocksdict-config"


def files_of(directory: Path) -> list[str]:
    """Return the files below a directory, sorted."""
    return [str(path.relative_to(directory)) for path in sorted(directory.rglob("*")) if path.is_file()]


def strides(state: str, names: list[str]) -> dict[str, int]:
    """Return, for each file whose faults are tried in `state`, of which of its bytes: 1 is every one.

    Segments are the same files in all states, and two have the same form. LOG, RocksDB's diary, is read by
    nobody, nor are OPTIONS but the newest; a closed store's seal has them all. A mark that was taken back
    changes only what the log is judged by.
    """
    twins = sorted(name for name in names if kind_of(name) == "segment")[1:2]
    newest = max((name for name in names if kind_of(name) == "log/OPTIONS"), default="")
    out = {}
    for name in names:
        kind = kind_of(name)
        if state == "power cut" and kind not in ("log/*.log", "MARK"):
            continue
        out[name] = 1
        if kind == "log/LOG" or (kind == "log/OPTIONS" and name != newest):
            out[name] = _UNREAD
        elif kind == "log/OPTIONS" and state != "closed":
            out[name] = _OPTIONS
        elif name in twins or (kind == "segment" and state != "closed"):
            out[name] = _TWIN
    return out


class StoreSpecimen:
    """One state of the store below `directory`, as `build` made it: its faults, and judgement over them."""

    def __init__(self, directory: Path, state: str) -> None:
        self.state = state
        self._directory = directory
        self._root = directory / state
        self._names = files_of(self._root)
        self._strides = strides(state, self._names)

    def files(self) -> list[str]:
        """Return the files whose faults are tried."""
        return list(self._strides)

    def kind_of(self, file: str) -> str:
        """Return a file's kind."""
        return kind_of(file)

    def faults(self, file: str) -> Iterator[Fault]:
        """Yield every fault of a file."""
        data = (self._root / file).read_bytes()
        alike = [name for name in self._names if kind_of(name) == kind_of(file)]
        siblings = {name: (self._root / name).read_bytes() for name in alike if name > file}
        bits = 8 if self.state == "killed" and self.kind_of(file) in _EVERY_BIT else 1
        yield from faults.bytewise(file, data, self._strides[file], bits)
        yield from faults.whole(file, data)
        if self._strides[file] == 1:
            yield from faults.swaps(file, data, siblings)
        yield from faults.borrowings(file, data, self._donors(file))

    def _donors(self, file: str) -> dict[str, bytes]:
        found = {}
        for other in _OTHERS:
            root = self._directory / other / ("killed" if self.state == "power cut" else self.state)
            if root.is_dir():
                for name in files_of(root):
                    if kind_of(name) == kind_of(file):
                        found[str((root / name).relative_to(self._directory))] = (root / name).read_bytes()
        return found

    def judge(self) -> StoreJudge:
        """Return who judges damaged copies of it."""
        return StoreJudge(self._directory, self.state, self._strides)


class StoreJudge:
    """Does faults to a copy of a specimen and judges what it answers. Works in a scratch directory.

    `strides`: of each file, of which of its bytes faults are tried.
    """

    def __init__(self, directory: Path, state: str, strides: dict[str, int]) -> None:
        self._directory = directory
        self._copy = directory / f"copy-{os.getpid()}"
        self._strides = strides
        self._files = {name: (directory / state / name).read_bytes() for name in files_of(directory / state)}
        acknowledged: list[Answers] = pickle.loads((directory / "expected").read_bytes())
        self._expected = acknowledged[-1]
        self._earlier = acknowledged[:-1] if state == "power cut" else []
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(directory / state, self._copy)
        self._reader = SegmentReader(self._copy, lambda store: ask(store, self._expected)[0])

    def __call__(self, fault: Fault) -> str:
        """Return the verdict over a fault; WrongError says what is wrong."""
        fault.do(self._copy, self._directory)
        kind, tried = kind_of(fault.file), fault.at // self._strides[fault.file]
        if tried % _TO_WRITE.get(kind, 1):
            if kind == "segment":
                noticed = self._reader.notices(fault)
            else:
                noticed, _ = self._read(self._expected)
            self._restore(fault)
            return DETECTED if noticed else HARMLESS
        noticed, held = self._read(self._expected, *self._earlier)
        if held is None and tried % _REFUSED_TO_WRITE:
            self._restore(fault)
            return DETECTED
        opened, noticed_writing, held_writing = self._write(self._expected, *self._earlier)
        if opened:
            if not noticed_writing:
                self._read_on(held_writing)
            elif not self._read(self._expected, *self._earlier)[0]:
                raise WrongError("what was noticed is forgotten at the next opening")
            self._renew(fault)
        else:
            self._restore(fault)
        if noticed or noticed_writing:
            return DETECTED
        if held is not held_writing:
            raise WrongError("to read and to write it is not the same store")
        return HARMLESS if held is self._expected else DOCUMENTED

    def _read(self, *allowed: Answers) -> tuple[bool, Answers | None]:
        """Open to read; return whether damage was noticed, and which of the allowed answers it gave."""
        try:
            store = open_store(self._copy, "r", options=MANUAL)
        except (kvmeta.CorruptionError, kvmeta.FormatError):
            return True, None
        with store:
            return ask(store, *allowed)

    def _write(self, *allowed: Answers) -> tuple[bool, bool, Answers | None]:
        """Open to write, ask, and put where all is right; return whether it opened, and as `_read`."""
        try:
            store = open_store(self._copy, "a", options=MANUAL)
        except (kvmeta.CorruptionError, kvmeta.FormatError):
            return False, True, None
        with store:
            noticed, held = ask(store, *allowed)
            if not noticed:
                put(store, TOP, TOP + AFTER, mark=9)
            return True, noticed, held

    def _read_on(self, held: Answers | None) -> None:
        """Assert that the store has what was put after it was damaged, and all it had before."""
        assert held is not None
        with open_store(self._copy, "r", options=MANUAL) as store:
            noticed, _ = ask(store, held, put_after=True)
        if noticed:
            raise WrongError("damage is noticed only after a put")

    def _renew(self, fault: Fault) -> None:
        """Let the copy be as it was, after a writer; in place, for the reader has the segments mapped."""
        for folder in ("", "log", "segments"):
            for entry in os.scandir(self._copy / folder):
                if entry.is_file() and os.path.relpath(entry.path, self._copy) not in self._files:
                    Path(entry.path).unlink()
        for name, data in self._files.items():
            if kind_of(name) != "segment" or name in fault.files:
                (self._copy / name).write_bytes(data)

    def _restore(self, fault: Fault) -> None:
        for file in fault.files:
            (self._copy / file).write_bytes(self._files[file])

    def close(self) -> None:
        """Remove the copy."""
        self._reader.close()
        shutil.rmtree(self._copy, ignore_errors=True)


def ask(store: EmbeddedStore, *allowed: Answers, put_after: bool = False) -> tuple[bool, Answers | None]:
    """Ask for everything; return whether damage was noticed, and which of the `allowed` answers were given.

    Where damage is noticed, what was answered is compared with the first of them. Raises WrongError.
    """
    problems = []
    for held in allowed:
        try:
            return _compare(store, held, put_after=put_after), held
        except WrongError as error:
            problems.append(str(error))
    raise WrongError(problems[0])


def _compare(store: EmbeddedStore, expected: Answers, *, put_after: bool) -> bool:
    """Compare all answers with the expected ones; return whether damage was noticed."""
    if tuple(store.volumes.list()) != expected.volumes:
        raise WrongError(f"volumes: {store.volumes.list()}")
    if _options_of(store) != expected.options:
        raise WrongError(f"datasets: {_options_of(store)}")
    noticed = False
    for name, held in expected.datasets.items():
        put_here = put_after and name == "default"
        noticed |= _compare_lookup(store, name, held, put_here=put_here)
        noticed |= _compare_scan(store, name, held, put_here=put_here)
    return noticed or not store.verify().ok


def _compare_lookup(store: EmbeddedStore, name: str, held: Held, *, put_here: bool) -> bool:
    hit = store.dataset(name).lookup(every_id(), on_error="mask")
    answered = ~hit.failed
    old = answered & (np.arange(TOP + AFTER) < TOP) if put_here else answered
    if not np.array_equal(hit.found[old], held.found[old]):
        absent = int((held.found[old] & ~hit.found[old]).sum())
        raise WrongError(f"{name}: {absent} IDs falsely absent, {int(hit.found[old].sum())} found")
    there = old & held.found
    if not np.array_equal(hit.locations[there], held.locations[there]):
        raise WrongError(f"{name}: wrong locations")
    if not np.array_equal(hit.versions[there], held.versions[there]):
        raise WrongError(f"{name}: wrong versions")
    if put_here and not (
        hit.found[TOP:].all() and np.array_equal(hit.locations[TOP:], locations(ids(TOP, TOP + AFTER), 9))
    ):
        raise WrongError(f"{name}: what was put after the damage is not there")
    return bool(hit.failed.any())


def _compare_scan(store: EmbeddedStore, name: str, held: Held, *, put_here: bool) -> bool:
    try:
        pages = list(store.dataset(name).scan(page_rows=300))
    except kvmeta.CorruptionError:
        return True
    there = held.order
    if put_here:
        there = in_order(held.found | (np.arange(TOP + AFTER) >= TOP))
    found = np.concatenate([page.ids for page in pages])
    order = np.argsort(found)
    if not np.array_equal(found[order], every_id()[there]):
        raise WrongError(f"{name}: the scan has {len(found)} IDs, expected {len(there)}")
    old = there < TOP
    for column, expected in (("locations", held.locations), ("versions", held.versions)):
        scanned = np.concatenate([getattr(page, column) for page in pages])[order]
        if not np.array_equal(scanned[old], expected[there[old]]):
            raise WrongError(f"{name}: the scan has wrong {column}")
    return False
