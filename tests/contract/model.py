"""The contract as a dict: what every store must do, without any of what makes it fast."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Outcome, Relocated, ScanPage, as_batches
from kvmeta.errors import InputError, NotFoundError, UnsupportedError
from kvmeta.ids import ID, as_ids
from kvmeta.location import LOCATION, as_locations
from kvmeta.mixing import mix
from kvmeta.store import (
    Dataset,
    Scan,
    Store,
    StoreStats,
    VerifyReport,
    check_dataset_name,
    check_ttl,
)
from kvmeta.version import MOVES_MAX, HybridClock, expiry
from kvmeta.volumes import NewVolume, Volume, Volumes, normal_uri, unregistered

Entry = tuple[bytes, int]  # location bytes, version

_one_at_a_time = threading.Lock()


class ModelDataset(Dataset):
    """A dataset as a dict of ID bytes to (location bytes, version)."""

    def __init__(self, store: ModelStore, name: str, ttl_s: float | None) -> None:
        self.name = name
        self._store = store
        self._ttl_s = ttl_s
        self._places: dict[bytes, int] = {}
        self._rows: dict[bytes, Entry] = {}

    @property
    def _entries(self) -> dict[bytes, Entry]:
        if self._store.dataset(self.name) is not self:
            raise NotFoundError(f"no dataset {self.name!r}")
        return self._rows

    def _live(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry[1] < expiry(self._ttl_s, time.time_ns() // 1_000_000):
            return None
        return entry

    def _lookup(self, ids: NDArray[np.void], *, mask: bool = False) -> Hits:
        n = len(ids)
        hits = Hits(np.zeros(n, bool), np.zeros(n, LOCATION), np.zeros(n, np.uint64), np.zeros(n, bool))
        for i, key in enumerate(_keys(ids)):
            entry = self._live(key)
            if entry is not None:
                hits.found[i] = True
                hits.locations[i] = np.frombuffer(entry[0], LOCATION)[0]
                hits.versions[i] = entry[1]
        return hits

    def _put(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> None:
        version = self._store.clock.stamp()
        for key, location in zip(_keys(ids), locations, strict=True):
            self._entries[key] = (location.tobytes(), version)

    def _insert(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> Inserted:
        version = self._store.clock.stamp()
        inserted = np.zeros(len(ids), bool)
        with _one_at_a_time:
            for i, key in enumerate(_keys(ids)):
                if self._live(key) is None:
                    inserted[i] = True
                    self._entries[key] = (locations[i].tobytes(), version)
        now = self._lookup(ids)
        return Inserted(inserted, now.locations, now.versions, now.failed)

    def _delete(self, ids: NDArray[np.void]) -> None:
        for key in _keys(ids):
            self._entries.pop(key, None)

    def _relocate(
        self, ids: NDArray[np.void], locations: NDArray[np.void], versions: NDArray[np.uint64]
    ) -> Relocated:
        seen: set[bytes] = set()
        outcomes = np.zeros(len(ids), np.uint8)
        for i, key in enumerate(_keys(ids)):
            entry = self._live(key)
            if key in seen:
                outcomes[i] = Outcome.REPEATED
            elif entry is None:
                outcomes[i] = Outcome.ABSENT
            elif entry[1] != versions[i]:
                outcomes[i] = Outcome.CHANGED
            elif entry[1] & MOVES_MAX == MOVES_MAX:
                outcomes[i] = Outcome.EXHAUSTED
            else:
                self._entries[key] = (locations[i].tobytes(), entry[1] + 1)
            seen.add(key)
        return Relocated(outcomes == Outcome.RELOCATED, outcomes)

    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        (index, count), sample, tag, after = scan.shard, scan.sample, scan.tag, scan.after
        first, end = (index << 64) // count, ((index + 1) << 64) // count
        end = first + max(1, int((end - first) * Fraction(sample)))
        keys = [key for key in self._entries if self._live(key) is not None]
        low = -1 if after is None else int.from_bytes(after, "big")
        rows = [(place, key) for place, key in zip(self._places_of(keys), keys, strict=True) if place > low]
        rows = sorted(row for row in rows if first <= row[0] >> 64 < end)
        rows = [row for row in rows if tag is None or self._tag(row[1]) == tag]
        part = rows[: scan.page_rows]
        entries = [self._entries[key] for _, key in part]
        page = ScanPage(
            np.frombuffer(b"".join(key for _, key in part), ID),
            np.frombuffer(b"".join(location for location, _ in entries), LOCATION),
            np.array([version for _, version in entries], np.uint64),
            part[-1][0].to_bytes(16, "big") if part else bytes(16),
        )
        return page, len(part) == len(rows)

    def _places_of(self, keys: list[bytes]) -> list[int]:
        """Return where in a scan each key is."""
        new = [key for key in keys if key not in self._places]
        for key, (high, low) in zip(new, mix(np.frombuffer(b"".join(new), ID)).tolist(), strict=True):
            self._places[key] = high << 64 | low
        return [self._places[key] for key in keys]

    def _tag(self, key: bytes) -> int:
        return int(np.frombuffer(self._entries[key][0], LOCATION)[0]["tag"])

    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        ready = []
        for ids, locations in as_batches(batches):
            column = as_ids(ids)
            ready.append((column, as_locations(locations, len(column))))
        for column, rows in ready:
            self._put(column, rows)
        return sum(len(column) for column, _ in ready)

    def _volumes(self, numbers: list[int]) -> list[Volume]:
        return [self._store.volumes.get(number) for number in numbers]


class ModelVolumes(Volumes):
    """The table of volumes as a dict."""

    def __init__(self) -> None:
        self._rows: dict[int, Volume] = {}

    def register(self, wanted: list[NewVolume]) -> list[Volume]:
        return [self._registered(*each) for each in wanted]

    def _registered(self, text: str, name: str | None, size_bytes: int | None, codec: str) -> Volume:
        for volume in self._rows.values():
            if volume.uri == text:
                return volume
        number = len(self._rows) + 1
        label = name if name is not None else text.rsplit("/", 1)[-1]
        self._rows[number] = Volume(number, text, label, "online", size_bytes)
        return self._rows[number]

    def get(self, volume: Any) -> Volume:
        if not isinstance(volume, (str, Path)):
            if int(volume) not in self._rows:
                raise unregistered(int(volume))
            return self._rows[int(volume)]
        for each in self._rows.values():
            if each.uri == normal_uri(volume):
                return each
        raise NotFoundError(f"no volume with URI {volume}")

    def list(self) -> list[Volume]:
        return [self._rows[number] for number in sorted(self._rows)]

    def move(self, volume: int, uri: Any) -> Volume:
        old = self.get(volume)
        if any(each.uri == normal_uri(uri) and each != old for each in self._rows.values()):
            raise InputError(f"{uri} is taken")
        self._rows[int(old)] = Volume(int(old), normal_uri(uri), old.name, old.state, old.size_bytes)
        return self._rows[int(old)]

    def set_state(self, volume: int, state: str) -> Volume:
        if state not in ("online", "offline"):
            raise InputError(f"state {state!r}")
        old = self.get(volume)
        self._rows[int(old)] = Volume(int(old), old.uri, old.name, state, old.size_bytes)
        return self._rows[int(old)]


class ModelStore(Store):
    """A store of dicts."""

    def __init__(self) -> None:
        self.clock = HybridClock()
        self.volumes = ModelVolumes()
        self._datasets: dict[str, ModelDataset] = {"default": ModelDataset(self, "default", None)}
        self._closed = False

    def dataset(self, name: str = "default") -> ModelDataset:
        if self._closed:
            raise InputError("closed")
        if name not in self._datasets:
            raise NotFoundError(f"no dataset {name!r}")
        return self._datasets[name]

    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> ModelDataset:
        if name in self._datasets:
            raise InputError(f"dataset {name!r}")
        self._datasets[check_dataset_name(name)] = ModelDataset(self, name, check_ttl(ttl_s))
        return self._datasets[name]

    def drop_dataset(self, name: str) -> None:
        if name == "default":
            raise InputError("the default dataset cannot be dropped")
        self.dataset(name)
        del self._datasets[name]

    def datasets(self) -> list[str]:
        return sorted(self._datasets)

    def flush(self) -> None:
        pass

    def compact(self, *, discard_damaged: bool = False, progress: Any = None) -> None:
        pass

    def verify(self, *, progress: Any = None) -> VerifyReport:
        return VerifyReport(0, 0, ())

    def stats(self) -> StoreStats:
        raise UnsupportedError("a model has no figures")

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True


def _keys(ids: NDArray[np.void]) -> list[bytes]:
    raw = ids.tobytes()
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]
