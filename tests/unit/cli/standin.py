"""A store in a dict, with the parts of the public contract that the commands use.

The commands are tested against it for their own behaviour: arguments, output, exit codes. What the engine
answers is the business of its own tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np

from kvmeta.errors import InputError, NotFoundError
from kvmeta.ids import ID, as_ids
from kvmeta.location import LOCATION
from kvmeta.volumes import normal_uri


class StandInVolume(int):
    uri = name = ""
    state = "online"
    codec = "raw"
    size_bytes: int | None = None


class StandInVolumes:
    def __init__(self):
        self._by_number = {}

    def add(self, uri, codec="raw"):
        uri = normal_uri(uri)
        for known in self._by_number.values():
            if known.uri == uri:
                return known
        volume = StandInVolume(len(self._by_number) + 1)
        volume.codec = codec
        volume.uri, volume.name = uri, uri.rsplit("/", 1)[-1]
        self._by_number[int(volume)] = volume
        return volume

    def get(self, volume):
        for known in self._by_number.values():
            if (isinstance(volume, str) and known.uri == normal_uri(volume)) or (
                not isinstance(volume, str) and int(known) == int(volume)
            ):
                return known
        raise NotFoundError(f"no volume {volume!r}")

    def list(self):
        return list(self._by_number.values())

    def move(self, volume, new_uri):
        self._by_number[int(volume)].uri = normal_uri(new_uri)
        return self._by_number[int(volume)]


class StandInDataset:
    def __init__(self, volumes):
        self.volumes = volumes
        self.entries = {}
        self.damaged = set()

    def put(self, ids, locations):
        for one, location in zip(as_ids(ids).tolist(), locations, strict=True):
            self.entries[one] = (location, 1000 + len(self.entries))

    def lookup(self, ids, on_error="raise"):
        ids = as_ids(ids)
        n = len(ids)
        hit = SimpleNamespace(
            found=np.zeros(n, bool),
            failed=np.zeros(n, bool),
            locations=np.zeros(n, LOCATION),
            versions=np.zeros(n, np.uint64),
        )
        for i, one in enumerate(ids.tolist()):
            hit.failed[i] = one in self.damaged
            if one in self.entries:
                hit.found[i] = True
                hit.locations[i], hit.versions[i] = self.entries[one]
        assert on_error == "mask" or not hit.failed.any()
        return hit

    def read(self, ids):
        out = []
        for one in as_ids(ids).tolist():
            if one not in self.entries:
                out.append(None)
                continue
            location = self.entries[one][0]
            uri = self.volumes.get(int(location["volume"])).uri
            with open(unquote(urlparse(uri).path), "rb") as file:
                file.seek(int(location["offset"]))
                out.append(file.read(int(location["length"])))
        return out

    def scan(self, page_rows=65536, sample=1.0, tag=None, shard=(0, 1)):
        rows = sorted((one, *entry) for one, entry in self.entries.items())
        rows = [row for row in rows if tag is None or row[1]["tag"] == tag]
        rows = rows[: int(len(rows) * sample)][shard[0] :: shard[1]]
        for start in range(0, len(rows), page_rows):
            page = rows[start : start + page_rows]
            yield SimpleNamespace(
                ids=np.array([row[0] for row in page], ID),
                locations=np.array([row[1] for row in page], LOCATION),
                versions=np.array([row[2] for row in page], np.uint64),
            )


@dataclass(frozen=True)
class StandInDatasetStats:
    name: str = "default"
    rows: int = 12_345
    memtable_rows: int = 0
    quarantined_runs: int = 0
    memtable_bytes: int = 5 << 20


@dataclass(frozen=True)
class StandInStats:
    datasets: list[StandInDatasetStats] = field(default_factory=lambda: [StandInDatasetStats()])
    disk_bytes: int = 3 << 30
    read_only: bool = True


class StandInStore:
    def __init__(self):
        self.volumes = StandInVolumes()
        self.kept = {"default": StandInDataset(self.volumes)}
        self.damages = []
        self.compactions = []
        self.segments = 3
        self.figures = StandInDatasetStats()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        pass

    def datasets(self):
        return list(self.kept)

    def create_dataset(self, name):
        self.kept[name] = StandInDataset(self.volumes)

    def dataset(self, name):
        if name not in self.kept:
            raise NotFoundError(f"no dataset {name!r}")
        return self.kept[name]

    def compact(self, *, discard_damaged=False, progress=None):
        self.compactions.append({"discard_damaged": True} if discard_damaged else {})

    def verify(self, *, progress=None):
        if progress is not None:
            progress(4_000, 4_000)
        pages = 4_000 if self.segments else 0
        return SimpleNamespace(ok=not self.damages, segments=self.segments, pages=pages, damages=self.damages)

    def stats(self):
        return StandInStats([self.figures])


class Opener:
    """Stands in for `kvmeta.open`, and remembers in which modes it was called."""

    def __init__(self):
        self.stores = {}
        self.modes = []
        self.options = []
        self.failure = None

    def __call__(self, path, mode="a", options=None):
        if self.failure is not None:
            raise self.failure
        if mode not in ("a", "r"):
            raise InputError(f"mode {mode!r}")
        self.modes.append(mode)
        self.options.append(options)
        if path not in self.stores:
            if mode == "r":
                raise NotFoundError(f"no store at {path}")
            self.stores[path] = StandInStore()
        return self.stores[path]
