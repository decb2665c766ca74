"""Every limit of the engine in one place, each with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kvmeta.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True)
class EngineOptions:
    """Limits of one store. The defaults suit a node that holds up to billions of entries."""

    batch_rows_max: int = 65_536
    """Rows of one atomic chunk: 3 MB, small enough to be one WAL value, large enough to hide an fsync."""

    group_rows_max: int = 262_144
    """Rows that share one fsync: bounds how long the first waits for the last. Never more than a memtable."""

    memtable_rows_max: int = 1 << 20
    """Rows of a memtable before it is frozen: 48 MB, 8 MB of slots, and its WAL to replay at open."""

    frozen_memtables_max: int = 2
    """Frozen memtables that may wait for their flush; writers wait beyond it, so memory stays bounded."""

    segment_bytes_max: int = 256 * MIB
    """Size of a segment file: the temporary space of a merge, and what one damaged header can cost."""

    fan_out: int = 8
    """Runs of one tier that are merged into one of the next. Larger: fewer rewrites, more runs to search."""

    upper_runs_max: int = 32
    """Upper runs beyond which writers wait for merges, so that lookups and filters stay bounded."""

    bottom_ratio: int = 8
    """The upper runs are merged into the bottom run when they hold a bottom_ratio-th of its rows. They carry
    filters (1.25 B/entry) and the bottom does not, so this also bounds the memory of filters."""

    filter_bits_per_row: int = 10
    """Of the upper runs' blocked Bloom filters: about 1.5% false positives."""

    merge_step_rows: int = 131_072
    """Rows a merge unpacks at a time: 6 MB, which stays in the L3 cache."""

    load_rows_max: int = 1 << 22
    """Rows a bulk load sorts at a time and writes as one run: 192 MB; up to four such arrays are at work."""

    wal_rows_max: int = 8 << 20
    """Rows of WAL (about 40 bytes each) kept for the oldest memtable. Beyond it that memtable is flushed,
    however few rows it has: a dataset that is seldom written must not keep the log of all others."""

    keep_tombstones: bool = False
    """On where other copies may hold what a tombstone hides: merges keep it until `Tree.purge_below` is past
    it."""

    sync: bool = True
    """Off only in tests and measurements: acknowledged writes then do not survive a power cut."""

    probe: bool = False
    """Read every segment once, at open, before it is mapped. Where the device cannot read a mapped page, the
    process ends (SIGBUS); a page that a probe finds unreadable is damage like any other."""

    background: bool = True
    """Off in tests and simulators, which drive the queue of steps themselves (`Background.step`)."""

    def __post_init__(self) -> None:
        least = {"fan_out": 2, "bottom_ratio": 1, "filter_bits_per_row": 0, "frozen_memtables_max": 0}
        for name, value in asdict(self).items():
            if not isinstance(value, bool) and value < least.get(name, 1):
                raise InputError(f"{name}: expected at least {least.get(name, 1)}, got {value}")
        if not 1 <= self.batch_rows_max <= self.memtable_rows_max:
            limit = f"1 to memtable_rows_max ({self.memtable_rows_max})"
            raise InputError(f"batch_rows_max: expected {limit}, got {self.batch_rows_max}")
