"""The cluster's tables: which datasets there are, which numbers are taken. One document, with its history.

It lies in etcd beside the map and is changed by compare-and-swap alone, under a map that is known to go on
from the changer's own (membership.py). Numbers of datasets and volumes are never given out twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvmeta.engine.state import DEFAULT_DATASET
from kvmeta.errors import CorruptionError, InputError, NotFoundError
from kvmeta_server.cluster.history import NO_HISTORY, History, digest_of

FORMAT = 1
_Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


@dataclass(frozen=True)
class DatasetRow:
    """A dataset: its number, which is never another's, and its options."""

    id: int
    ttl_s: float | None = None
    bottom_filter: bool = False


@dataclass(frozen=True)
class Tables:
    """The tables at one `serial`, which each change raises by one."""

    cluster_id: bytes
    serial: int = 1
    next_dataset: int = 1
    next_volume: int = 1
    datasets: Mapping[str, DatasetRow] = field(default_factory=dict)
    history: History = NO_HISTORY

    @cached_property
    def digest(self) -> int:
        """Return the digest of this document, its history included."""
        return digest_of(self.encode())

    @cached_property
    def by_local_name(self) -> Mapping[str, DatasetRow]:
        """Return the datasets by the names under which nodes hold them."""
        return {local_name(name, row.id): row for name, row in self.datasets.items()}

    def descends_from(self, other: Tables) -> bool:
        """Return whether these are `other`, or came from it."""
        if self.cluster_id != other.cluster_id or self.serial < other.serial:
            return False
        if self.serial == other.serial:
            return self.digest == other.digest
        return self.history.has(self.serial - other.serial, other.digest)

    # Changes: each returns the next tables

    def with_dataset(self, name: str, *, ttl_s: float | None, bottom_filter: bool) -> Tables:
        """Return them with another dataset; InputError where there is one of its name."""
        if name == DEFAULT_DATASET or name in self.datasets:
            raise InputError(f"dataset {name!r} exists already")
        row = DatasetRow(self.next_dataset, ttl_s, bottom_filter)
        return self._next(datasets={**self.datasets, name: row}, next_dataset=row.id + 1)

    def without_dataset(self, name: str) -> Tables:
        """Return them without a dataset; NotFoundError where there is none of its name."""
        if name not in self.datasets:
            raise NotFoundError(f"no dataset {name!r}")
        return self._next(datasets={each: row for each, row in self.datasets.items() if each != name})

    def with_volumes(self, count: int = 0) -> Tables:
        """Return them after volumes were changed, or so many more numbers given out."""
        return self._next(next_volume=self.next_volume + count)

    def raised(self, *, serial: int, next_dataset: int, next_volume: int) -> Tables:
        """Return their continuation with a serial above one, and numbers that begin no lower than those."""
        history = self.history.with_next(self.digest).with_gap(max(0, serial - self.serial))
        return replace(
            self, serial=max(self.serial, serial) + 1, history=history,
            next_dataset=max(self.next_dataset, next_dataset), next_volume=max(self.next_volume, next_volume),
        )  # fmt: skip

    def _next(self, **fields: Any) -> Tables:
        return replace(self, serial=self.serial + 1, history=self.history.with_next(self.digest), **fields)

    # As bytes

    def encode(self) -> bytes:
        """Return them as JSON. What was decoded is the bytes it was: its digest is theirs."""
        return self._raw

    @cached_property
    def _raw(self) -> bytes:
        fields = {
            "format": FORMAT, "cluster_id": self.cluster_id.hex(), "serial": self.serial,
            "next_dataset": self.next_dataset, "next_volume": self.next_volume,
            "datasets": {name: vars(row) for name, row in self.datasets.items()},
            "history": self.history.text(),
        }  # fmt: skip
        return json.dumps(fields).encode()


class _Encoded(msgspec.Struct, forbid_unknown_fields=True):
    """Their JSON."""

    format: Annotated[int, Meta(ge=1, le=FORMAT)]
    cluster_id: str
    serial: _Natural
    next_dataset: _Natural
    next_volume: _Natural
    datasets: dict[str, DatasetRow]
    history: str


@lru_cache(maxsize=4)
def decode_tables(raw: bytes) -> Tables:
    """Return the tables in `raw`; CorruptionError where they are none, or of a newer format."""
    try:
        fields = msgspec.json.decode(raw, type=_Encoded)
        decoded = Tables(
            bytes.fromhex(fields.cluster_id), fields.serial, fields.next_dataset, fields.next_volume,
            fields.datasets, History.of(fields.history),
        )  # fmt: skip
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptionError(f"not a cluster's tables: {error!r}") from None
    decoded.__dict__["_raw"] = raw
    return decoded


def local_name(name: str, number: int) -> str:
    """Return under which name nodes hold a dataset: one that is dropped and made anew is another."""
    return name if name == DEFAULT_DATASET else f"{name}@{number}"


def number_of(local: str) -> int:
    """Return the number of a dataset from its name on nodes; 0 for the default one."""
    return int(local.rpartition("@")[2]) if "@" in local else 0
