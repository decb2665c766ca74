"""The public contract: a store has datasets, a dataset answers batches. Every kind of store is one of these.

What can be said once for all kinds is said here: argument checks, single gets, reads, iterating over pages. A
kind adds the columns (`EmbeddedStore`).
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from kvmeta.batch import Hits, Inserted, Outcome, Relocated, ScanPage, as_versions
from kvmeta.errors import IncompleteBatchError, InputError
from kvmeta.files import local, plan
from kvmeta.ids import as_ids
from kvmeta.location import Location, as_locations
from kvmeta.version import TTL_S_MAX
from kvmeta.volumes import Volume, Volumes

OnError = Literal["raise", "mask"]
CURSOR_BYTES = 16
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class DatasetStats:
    """One dataset's figures. `rows` counts stored entries, replaced ones until they are merged away."""

    name: str
    ttl_s: float | None
    rows: int
    tombstones: int
    memtable_rows: int
    runs: int
    segments: int
    quarantined_runs: int
    disk_bytes: int
    memtable_bytes: int
    table_bytes: int
    """Directories, filters and page states: what lookups need in memory besides memtables and pages."""
    merging: bool


@dataclass(frozen=True)
class StoreStats:
    """A store's figures; sizes in bytes."""

    path: str
    format: int
    read_only: bool
    wal_sequence: int
    log_bytes: int
    volumes: int
    datasets: tuple[DatasetStats, ...]

    @property
    def rows(self) -> int:
        """Return the stored entries of all datasets."""
        return sum(dataset.rows + dataset.memtable_rows for dataset in self.datasets)

    @property
    def disk_bytes(self) -> int:
        """Return the bytes of all segments."""
        return sum(dataset.disk_bytes for dataset in self.datasets)


@dataclass(frozen=True)
class Damage:
    """One damaged stretch: entries with mixed IDs in [first, last] may be lost (None: no entry is).

    `page` is the page's number in the file at `path` (0 is the header), None for the file as a whole.
    """

    path: str
    dataset: str
    page: int | None
    first: int | None
    last: int | None
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What a verification read and found."""

    segments: int
    pages: int
    damages: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Return whether everything read was as written."""
        return not self.damages


@dataclass(frozen=True)
class Scan:
    """What a scan was asked for, checked: the arguments of `Dataset.scan`."""

    page_rows: int = 65_536
    sample: float = 1.0
    tag: int | None = None
    after: bytes | None = None
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        rows, tag, after = self.page_rows, self.tag, self.after
        if not isinstance(rows, (int, np.integer)) or rows < 1:
            raise InputError(f"page_rows: expected at least 1, got {rows}")
        if not isinstance(self.sample, (int, float, np.floating)) or not 0 < self.sample <= 1:
            raise InputError(f"sample: expected a share in (0, 1], got {self.sample}")
        if tag is not None and not (isinstance(tag, (int, np.integer)) and 0 <= tag < 1 << 32):
            raise InputError(f"tag: expected a number in [0, 2**32), got {tag}")
        if after is not None and (not isinstance(after, bytes) or len(after) != CURSOR_BYTES):
            raise InputError(f"after: expected a page's cursor ({CURSOR_BYTES} bytes), got {after!r}")
        try:
            index, count = (operator.index(each) for each in self.shard)
        except (TypeError, ValueError):
            raise InputError(f"shard: expected (i, n), got {self.shard!r}") from None
        if not 0 <= index < count:
            raise InputError(f"shard: expected (i, n) with 0 <= i < n, got {self.shard}")


class Dataset(ABC):
    """A named keyspace. All methods take batches of any size and are thread-safe.

    IDs are given in any form `kvmeta.as_ids` takes. A call with more than 65,536 IDs is cut into chunks; each
    is atomic, the call is not.
    """

    name: str

    def lookup(self, ids: Any, *, on_error: OnError = "raise") -> Hits:
        """Return the locations of `ids` (n of them) as columns.

        IDs that cannot be answered (damage) raise IncompleteBatchError with the rest in `.partial`; with
        on_error="mask" they are marked in `.failed` instead.
        """
        check_on_error(on_error)
        return answered(self.name, self._lookup(as_ids(ids), mask=on_error == "mask"), on_error)

    def get(self, one_id: Any) -> Location | None:
        """Return one ID's location, or None. A str is a key."""
        hits = self.lookup(as_one_id(one_id))
        return Location(*hits.locations[0].tolist()) if hits.found[0] else None

    def put(self, ids: Any, locations: Any) -> None:
        """Set the location of each ID; durable when it returns. Of duplicates the last wins.

        An error's `.failed` (bool[n]) says which IDs are not acknowledged; they may have taken effect.
        Volumes are not looked up: `read` tells where one is not registered.
        """
        column = as_ids(ids)
        self._put(column, as_locations(locations, len(column)))

    def insert(self, ids: Any, locations: Any) -> Inserted:
        """Set the location of each absent ID; of duplicates the first wins. Durable when it returns."""
        column = as_ids(ids)
        return inserted(self.name, self._insert(column, as_locations(locations, len(column))))

    def delete(self, ids: Any) -> None:
        """Remove each ID, held or not; durable when it returns."""
        self._delete(as_ids(ids))

    def relocate(self, ids: Any, locations: Any, versions: Any) -> Relocated:
        """Set the location of each ID whose held version is still that of `versions` (u8[n], as looked up).

        A newer put or delete is never overwritten. Durable when it returns.
        """
        column = as_ids(ids)
        n = len(column)
        return relocated(
            self.name, self._relocate(column, as_locations(locations, n), as_versions(versions, n))
        )

    def scan(
        self,
        *,
        page_rows: int = 65_536,
        sample: float = 1.0,
        tag: int | None = None,
        after: bytes | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[ScanPage]:
        """Yield every live entry, in pages of up to `page_rows`, in hash order.

        `sample`: only a uniform random share in (0, 1]; `tag`: only entries with it; `after`: continue behind
        a page's cursor; `shard`: part i of n. Entries put or deleted meanwhile may or may not be seen; all
        others are seen exactly once.
        """
        return self._pages(Scan(page_rows, sample, tag, after, shard))

    @abstractmethod
    def scan_page(self, scan: Scan) -> tuple[ScanPage, bool]:
        """Return the next page of a scan and whether nothing follows.

        It looks at a bounded number of rows, so it may be empty and yet not the last.
        """

    def read(self, ids: Any) -> list[bytes | None]:
        """Return the bytes of each ID's file, None where the ID is absent.

        Grouped by volume, sorted by offset, near neighbours read together, in parallel; checked by CRC-32C. A
        location in an unregistered volume raises NotFoundError. Files that cannot be read or do not match
        raise IncompleteBatchError, whose `.failed` names them and whose `.partial` has the others.
        """
        hits = self.lookup(ids)
        volumes = self._volumes(plan.volume_numbers(hits.locations, hits.found))
        return local.read(hits.locations, hits.found, volumes)

    @abstractmethod
    def load(self, batches: Iterable[tuple[Any, Any]]) -> int:
        """Bulk-load (ids, locations) batches and return the rows read.

        Faster than put and without the log: visible and durable whole when it returns; if it fails, nothing
        of it is. Later batches win over earlier ones, and the load over everything written before it
        returned.
        """

    @abstractmethod
    def _lookup(self, ids: NDArray[np.void], *, mask: bool = False) -> Hits: ...

    @abstractmethod
    def _put(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> None: ...

    @abstractmethod
    def _insert(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> Inserted: ...

    @abstractmethod
    def _delete(self, ids: NDArray[np.void]) -> None: ...

    @abstractmethod
    def _relocate(
        self, ids: NDArray[np.void], locations: NDArray[np.void], versions: NDArray[np.uint64]
    ) -> Relocated: ...

    def _pages(self, scan: Scan) -> Iterator[ScanPage]:
        done = False
        while not done:
            page, done = self.scan_page(scan)
            scan = replace(scan, after=page.cursor)
            if len(page):
                yield page

    @abstractmethod
    def _volumes(self, numbers: list[int]) -> list[Volume]:
        """Return volumes by number; NotFoundError where one is not registered."""


class Store(ABC):
    """A catalogue: datasets and volumes. Use it as a context manager or call `close`.

    A read-only store can be pickled: the copy opens it again, in its own state at open.
    """

    volumes: Volumes

    @abstractmethod
    def dataset(self, name: str = "default") -> Dataset:
        """Return a dataset; NotFoundError if there is none of that name."""

    @abstractmethod
    def create_dataset(
        self, name: str, *, ttl_s: float | None = None, bottom_filter: bool = False
    ) -> Dataset:
        """Create a dataset; its options are fixed from now on.

        `ttl_s`: entries expire that many seconds after their last put. `bottom_filter`: filters on all data,
        for datasets asked mostly for IDs they do not have (1.25 bytes an entry more).
        """

    @abstractmethod
    def drop_dataset(self, name: str) -> None:
        """Remove a dataset and all its entries."""

    @abstractmethod
    def datasets(self) -> list[str]:
        """Return the names of the datasets, sorted."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is in memory to the runs on disk; it was durable before."""

    @abstractmethod
    def compact(self, *, discard_damaged: bool = False, progress: Progress | None = None) -> None:
        """Merge each dataset's runs into one.

        Damaged runs are left as they are. With `discard_damaged` they are merged too and what cannot be read
        is given up: its entries are lost, and an ID whose newest entry was among them may answer with an
        older one, even a deleted one. Put what `verify` says is lost again afterwards.
        """

    @abstractmethod
    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every segment and report what is not as it was written; the log was checked at open."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Return figures about the store."""

    @abstractmethod
    def refresh(self) -> None:
        """Let a read-only handle see the store's current state."""

    @abstractmethod
    def close(self) -> None:
        """Release the store. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_on_error(on_error: str) -> None:
    """Raise InputError where it is neither "raise" nor "mask"."""
    if on_error not in ("raise", "mask"):
        raise InputError(f'on_error: expected "raise" or "mask", got {on_error!r}')


def as_one_id(one_id: Any) -> NDArray[np.void]:
    """Return one ID in any form `as_ids` takes, as ID[1]."""
    ids = as_ids(one_id)
    if len(ids) != 1:
        raise InputError(f"get takes one ID, got {len(ids)}; use lookup")
    return ids


def answered(dataset: str, hits: Hits, on_error: OnError) -> Hits:
    """Return `hits`; with on_error="raise" raise IncompleteBatchError where IDs failed."""
    if on_error == "raise" and hits.failed.any():
        raise _incomplete(dataset, "looked up", hits.failed, hits)
    return hits


def inserted(dataset: str, result: Inserted) -> Inserted:
    """Return an insert's result; raise IncompleteBatchError where IDs failed."""
    if result.failed.any():
        raise _incomplete(dataset, "inserted", result.failed, result)
    return result


def relocated(dataset: str, result: Relocated) -> Relocated:
    """Return a relocate's result; raise IncompleteBatchError where IDs failed."""
    failed = result.outcomes == Outcome.FAILED
    if failed.any():
        raise _incomplete(dataset, "relocated", failed, result)
    return result


def _incomplete(dataset: str, done: str, failed: NDArray[np.bool_], partial: Any) -> IncompleteBatchError:
    message = (
        f"dataset {dataset!r}: {int(failed.sum())} of {len(failed)} IDs could not be {done}, "
        "for pages that may hold them are damaged (run verify to see which) or too few replicas answered"
    )
    return IncompleteBatchError(message, failed, partial)


def check_ttl(ttl_s: float | None) -> float | None:
    """Return `ttl_s`; InputError where it is neither None nor a number of seconds in (0, TTL_S_MAX]."""
    if ttl_s is not None and not (isinstance(ttl_s, (int, float)) and 0 < ttl_s <= TTL_S_MAX):
        raise InputError(f"ttl_s: expected a positive number of seconds, at most {TTL_S_MAX:g}, got {ttl_s}")
    return ttl_s


def check_dataset_name(name: str) -> str:
    """Return `name`; InputError where it is not 1 to 128 of letters, digits, "_", "-" and "."."""
    if not isinstance(name, str) or not 1 <= len(name) <= 128:
        raise InputError(f"dataset name: expected 1 to 128 characters, got {name!r}")
    if not all(each.isascii() and (each.isalnum() or each in "_-.") for each in name):
        raise InputError(f'dataset name: expected letters, digits, "_", "-" and ".", got {name!r}')
    return name
