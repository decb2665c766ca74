"""Clients that write and read, and remember each operation with its times: a history to be judged.

Every attempt to write has a number of its own, kept in the location, so that a read says which write it saw.
IDs are used for a while and then left alone, most of them: writes of unknown outcome, after which little can
be judged, stay behind, and what is held long is still read now and then.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import kvmeta
from kvmeta import remote
from kvmeta.batch import Hits, Inserted, Outcome, Relocated
from kvmeta.client.attempts import Attempts
from kvmeta.errors import InputError, KvmetaError
from tests.chaos.history import GARBLED, ROW, Kind, Told
from tests.crash import small

T = TypeVar("T")
IDS_S = 8
"""New IDs a second."""
WINDOW = 240
"""IDs in use at a time: each for half a minute."""
BATCH = 24
OLD_SHARE = 0.25
"""Of the reads: of any ID there ever was."""
PAUSE_S = 0.03
_ATTEMPTS = 1 << 32
"""Of one thread."""


class _Watched(Attempts):
    """Attempts that tell of writes sent again though an earlier attempt may have been begun.

    The SDK sends puts and deletes again where a connection broke, and says so (docs/operating.md), but not of
    which call. `thread.sent_again` is set in the thread that made the call.
    """

    thread = threading.local()

    def after(self, failed: Any, *, closed: bool = False) -> float:
        pause_s = super().after(failed, closed=closed)
        if self._maybe_done and self._call.writes:
            self.thread.sent_again = True
        return pause_s


remote.Attempts = _Watched  # type: ignore[misc]


class Client:
    """A client process of several threads, each with stores of its own. `number` is among all clients."""

    def __init__(self, target: str, number: int, threads: int, seed: int, origin_s: float) -> None:
        addresses = target.removeprefix("kvmeta://").split(",")
        self._stop = threading.Event()
        self.writers = []
        for i in range(threads):
            turned = addresses[i % len(addresses) :] + addresses[: i % len(addresses)]
            self.writers.append(
                Writer(",".join(turned), number * threads + i + 1, seed, origin_s, self._stop)
            )
        self._threads = [threading.Thread(target=writer.run, daemon=True) for writer in self.writers]

    def start(self) -> None:
        """Write and read from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def read_all(self, timeout_s: float) -> int:
        """Look up every ID there ever was until each is answered; return how many are not in time."""
        return self.writers[0].read_all(timeout_s)

    def result(self) -> tuple[NDArray[Any], Counter[str], list[str]]:
        """Return the history ROW[n], the errors by kind, and faults of the client itself."""
        rows = [part for writer in self.writers for part in writer.rows]
        errors = sum((writer.errors for writer in self.writers), Counter())
        return np.concatenate(rows), errors, [fault for writer in self.writers for fault in writer.faults]


class Writer:
    """One thread of a client."""

    def __init__(
        self, addresses: str, number: int, seed: int, origin_s: float, stop: threading.Event
    ) -> None:
        quorum = kvmeta.ClientOptions(timeout_s=8, failover_s=1, hedge=number % 3 == 0)
        fast = kvmeta.ClientOptions(timeout_s=8, failover_s=1, consistency="fast")
        self._dataset = kvmeta.open(f"kvmeta://{addresses}", options=quorum).dataset()
        self._fast = kvmeta.open(f"kvmeta://{addresses}", options=fast).dataset()
        self._attempt = number * _ATTEMPTS
        self._random = np.random.default_rng([seed, number])
        self._origin_s = origin_s
        self._stop = stop
        self.rows: list[NDArray[Any]] = []
        self.errors: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        """Write and read until told to stop."""
        operations = (self._put, self._delete, self._insert, self._relocate, self._look, self._look_fast)
        shares = np.array([0.2, 0.1, 0.15, 0.15, 0.3, 0.1])
        while not self._stop.is_set():
            operation = operations[self._random.choice(len(operations), p=shares)]
            try:
                operation()
            except Exception:  # noqa: BLE001 - a fault of the client ends it, and is told
                self.faults.append(traceback.format_exc())
                return
            self._stop.wait(self._random.exponential(PAUSE_S))

    def read_all(self, timeout_s: float) -> int:
        """Look up every ID there ever was until each is answered; return how many are not in time."""
        open_ = np.arange(self._first() + WINDOW, dtype=np.uint64)
        end = time.monotonic() + timeout_s
        while len(open_) and time.monotonic() < end:
            left = []
            for some in np.array_split(open_, -(-len(open_) // 1000)):
                hits = self._lookup(self._dataset, Kind.LOOKUP, some)
                left.append(some if hits is None else some[hits.failed])
            open_ = np.concatenate(left)
        return len(open_)

    # Operations

    def _put(self) -> None:
        ids, locations = self._ids(), self._locations()
        self._write(Kind.PUT, ids, lambda: self._dataset.put(ids, locations), self._attempt)

    def _delete(self) -> None:
        ids = self._ids()
        self._write(Kind.DELETE, ids, lambda: self._dataset.delete(ids), 0)

    def _write(self, kind: Kind, ids: NDArray[Any], work: Callable[[], None], wrote: int) -> None:
        _Watched.thread.sent_again = False
        began = time.monotonic_ns()
        _, failed = self._call(work, len(ids))
        told = _told(failed)
        if _Watched.thread.sent_again:
            told[~failed] = Told.TWICE
        self._record(kind, ids, began, told, wrote=wrote)

    def _insert(self) -> None:
        ids, locations = self._ids(), self._locations()
        began = time.monotonic_ns()
        result, failed = self._call(lambda: self._dataset.insert(ids, locations), len(ids))
        told = _told(failed)
        saw, versions = np.zeros(len(ids), np.uint64), np.zeros(len(ids), np.uint64)
        if isinstance(result, Inserted):
            held = ~failed & ~result.inserted
            told[held] = Told.HELD
            saw[held] = _attempts_of(result.locations[held])
            versions[~failed] = result.versions[~failed]
        self._record(Kind.INSERT, ids, began, told, wrote=self._attempt, saw=saw, version=versions)

    def _relocate(self) -> None:
        ids = self._ids()
        hits = self._lookup(self._dataset, Kind.LOOKUP, ids)
        if hits is None or not hits.found.any():
            return
        ids, versions = ids[hits.found], hits.versions[hits.found]
        saw, locations = _attempts_of(hits.locations[hits.found]), self._locations(len(ids))
        began = time.monotonic_ns()
        result, failed = self._call(lambda: self._dataset.relocate(ids, locations, versions), len(ids))
        told = _told(failed)
        if isinstance(result, Relocated):
            failed |= result.outcomes == Outcome.FAILED
            told[~failed & (result.outcomes != Outcome.RELOCATED)] = Told.CHANGED
            told[~failed & (result.outcomes == Outcome.ABSENT)] = Told.ABSENT
        self._record(Kind.RELOCATE, ids, began, told, wrote=self._attempt, saw=saw, version=versions)

    def _look(self) -> None:
        self._lookup(self._dataset, Kind.LOOKUP, self._ids(old=self._random.random() < OLD_SHARE))

    def _look_fast(self) -> None:
        self._lookup(self._fast, Kind.FAST, self._ids(old=self._random.random() < OLD_SHARE))

    def _lookup(self, dataset: kvmeta.Dataset, kind: Kind, ids: NDArray[np.int64]) -> Hits | None:
        began = time.monotonic_ns()
        hits, failed = self._call(lambda: dataset.lookup(ids, on_error="mask"), len(ids))
        if hits is None:
            self._record(kind, ids, began, _told(failed))
            return None
        saw = np.zeros(len(ids), np.uint64)
        saw[hits.found] = _attempts_of(hits.locations[hits.found])
        self._record(kind, ids, began, _told(hits.failed), saw=saw, version=hits.versions)
        return hits

    # What they have in common

    def _ids(self, *, old: bool = False) -> NDArray[np.int64]:
        first = self._first()
        among = np.arange(0 if old else first, first + WINDOW)
        return self._random.choice(among, BATCH, replace=False).astype(np.uint64)

    def _first(self) -> int:
        return int((time.monotonic() - self._origin_s) * IDS_S)

    def _locations(self, count: int = BATCH) -> NDArray[np.void]:
        self._attempt += 1
        return small.locations(np.full(count, self._attempt, np.uint64))

    def _call(self, work: Callable[[], T], count: int) -> tuple[T | None, NDArray[np.bool_]]:
        """Return what a call returned, or its error's part, and of which IDs the outcome is unknown."""
        try:
            return work(), np.zeros(count, np.bool_)
        except InputError:
            raise
        except KvmetaError as error:
            self.errors[type(error).__name__] += 1
            failed = np.ones(count, np.bool_) if error.failed is None else error.failed.copy()
            return getattr(error, "partial", None), failed

    def _record(
        self,
        kind: Kind,
        ids: NDArray[Any],
        began: int,
        told: NDArray[np.uint8],
        *,
        wrote: int = 0,
        saw: Any = 0,
        version: Any = 0,
    ) -> None:
        rows = np.zeros(len(ids), ROW)
        rows["kind"], rows["id"], rows["told"], rows["wrote"] = kind, ids, told, wrote
        rows["saw"], rows["version"] = saw, version
        rows["began"], rows["ended"] = began, time.monotonic_ns()
        self.rows.append(rows)


def _told(failed: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(failed, np.uint8(Told.UNKNOWN), np.uint8(Told.DONE))


def _attempts_of(locations: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return the attempts that wrote locations; GARBLED where one is not as it was written."""
    attempts = locations["offset"] // 512
    whole = locations == small.locations(attempts)
    return np.where(whole, attempts, np.uint64(GARBLED))
