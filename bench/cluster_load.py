"""Load on a cluster that checks itself: a writer and a reader in one client process, and what they know.

Each write has a serial number, kept in the location. What is known of each ID: the serial of its last
acknowledged write, and of its last attempted delete. An answer is wrong if it is older than what was
acknowledged before the question, or absent though nothing was deleted since.
"""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvmeta
from kvmeta.errors import KvmetaError

BATCH_ROWS = 4096
DELETES_OF = 16
"""One write batch in so many deletes."""


class Load:
    """A client with `rows` IDs of its own, which its threads write and read until they are stopped."""

    def __init__(self, target: str, rows: int, seed: int) -> None:
        options = kvmeta.ClientOptions(timeout_s=30, failover_s=1.0)
        self._store = kvmeta.open(target, options=options)
        self._dataset = self._store.dataset()
        random = np.random.default_rng(seed)
        self._ids = random.integers(0, 256, (rows, 16), np.uint8).view("V16").reshape(-1)
        self._random = np.random.default_rng(seed + 1)
        self._acked = np.zeros(rows, np.uint64)
        self._tried_delete = np.zeros(rows, np.uint64)
        self._serial = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._reset()

    def _reset(self) -> None:
        self.times: dict[str, list[float]] = {"read": [], "write": []}
        self.errors: list[str] = []
        self.wrong: dict[str, int] = {"lost": 0, "old": 0}
        self.counts = {"read": 0, "write": 0}

    def fill(self) -> None:
        """Put every ID once."""
        for start in range(0, len(self._ids), 65_536):
            self._write(np.arange(start, min(start + 65_536, len(self._ids))), delete=False)

    def start(self) -> None:
        """Write and read from now on."""
        self._stop.clear()
        self._reset()
        self._threads = [threading.Thread(target=self._writing), threading.Thread(target=self._reading)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> dict[str, Any]:
        """Stop; return what was seen: counts, errors, wrong answers, and the longest waits for a success."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        gaps = {kind: _longest_gap(times) for kind, times in self.times.items()}
        return {"counts": self.counts, "errors": self.errors[:5], "error_count": len(self.errors),
                "wrong": dict(self.wrong), "gaps": gaps}  # fmt: skip

    def check_all(self) -> dict[str, int]:
        """Look up every ID; return how many answers are wrong."""
        self.wrong = {"lost": 0, "old": 0}
        for start in range(0, len(self._ids), 65_536):
            self._read(np.arange(start, min(start + 65_536, len(self._ids))))
        return dict(self.wrong)

    def _writing(self) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            rows = np.unique(self._random.integers(0, len(self._ids), BATCH_ROWS))
            try:
                self._write(rows, delete=turn % DELETES_OF == 0)
                self.counts["write"] += len(rows)
                self.times["write"].append(time.monotonic())
            except KvmetaError as error:
                self.errors.append(f"write: {error}")

    def _reading(self) -> None:
        random = np.random.default_rng(3)
        while not self._stop.is_set():
            rows = random.integers(0, len(self._ids), BATCH_ROWS)
            try:
                self._read(rows)
                self.counts["read"] += len(rows)
                self.times["read"].append(time.monotonic())
            except KvmetaError as error:
                self.errors.append(f"read: {error}")

    def _write(self, rows: NDArray[np.int64], *, delete: bool) -> None:
        self._serial += 1
        if delete:
            self._tried_delete[rows] = self._serial
            self._dataset.delete(self._ids[rows])
        else:
            locations = np.zeros(len(rows), kvmeta.LOCATION)
            locations["volume"], locations["offset"] = 1, self._serial
            self._dataset.put(self._ids[rows], locations)
        self._acked[rows] = self._serial

    def _read(self, rows: NDArray[np.int64]) -> None:
        acked = self._acked[rows].copy()
        hits = self._dataset.lookup(self._ids[rows])
        deleted = self._tried_delete[rows]
        lost = ~hits.found & (acked != 0) & (deleted < acked)
        old = hits.found & (hits.locations["offset"] < acked)
        self.wrong["lost"] += int(lost.sum())
        self.wrong["old"] += int(old.sum())


def _longest_gap(times: list[float]) -> float:
    return max((b - a for a, b in pairwise(times)), default=float("inf"))


class Lookups:
    """A client that asks for a store's entries, batch after batch, and says what CPU it took."""

    def __init__(self, target: str, rows: int, seed: int, consistency: str) -> None:
        options = kvmeta.ClientOptions(consistency=consistency)  # type: ignore[arg-type]
        self._dataset = kvmeta.open(target, options=options).dataset()
        random = np.random.default_rng(seed)
        self._ids = random.integers(0, 256, (rows, 16), np.uint8).view("V16").reshape(-1)

    def fill(self) -> None:
        """Put every ID."""
        locations = np.zeros(len(self._ids), kvmeta.LOCATION)
        locations["volume"] = 1
        self._dataset.load(
            (self._ids[i : i + 65_536], locations[i : i + 65_536]) for i in range(0, len(self._ids), 65_536)
        )

    def ask(self, batch_rows: int, batches: int) -> tuple[float, float]:
        """Ask; return the CPU seconds of this process and the seconds that passed."""
        random = np.random.default_rng()
        asked = [self._ids[random.integers(0, len(self._ids), batch_rows)] for _ in range(8)]
        cpu, start = time.process_time(), time.perf_counter()
        for turn in range(batches):
            hits = self._dataset.lookup(asked[turn % len(asked)])
        spent = time.process_time() - cpu, time.perf_counter() - start
        if not hits.found.all():
            raise AssertionError("an entry is missing")
        return spent
