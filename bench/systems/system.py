"""What the comparison asks of a system, so that one workload fits all.

A system has two halves. `System` lives in the benchmark's process: it starts servers, or names the directory
where there is none. Its `client` lives in a process of its own and is what is timed:

    benchmark   System.served(directory) ──> Place(address, server)
    client      client(address).lookup(ids), .put(ids, locations)

Columns go in and come out, for that is what a caller with numpy arrays has; what a client library wants
instead (lists of `bytes`, text, one request a file) is the adapter's to make, in the quickest way known.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

import kvmeta
from bench.built import disk_bytes

Ids = NDArray[np.void]
Locations = NDArray[np.void]
Batches = Iterable[tuple[Ids, Locations]]


class Columns(NamedTuple):
    """A lookup's answer: found bool[n]; locations LOCATION[n], None where a system tells only `found`."""

    found: NDArray[np.bool_]
    locations: Locations | None


class Client(ABC):
    """One process's access to a system; its methods may be called by several threads."""

    answers: ClassVar[bool] = True
    """Whether what it answers means anything; not an echo's."""

    @abstractmethod
    def __init__(self, address: Any) -> None: ...

    @abstractmethod
    def lookup(self, ids: Ids) -> Columns:
        """Return where the files are."""

    def lookups(self, batches: Sequence[Ids]) -> Iterator[Columns]:
        """Ask batches, as many under way at once as the client library can have; yield each answer."""
        return map(self.lookup, batches)

    def put(self, ids: Ids, locations: Locations) -> None:
        """Write a batch; it is as safe as the system's `durable` says when this returns."""
        raise kvmeta.UnsupportedError(f"{type(self).__name__} takes no puts")

    def load(self, batches: Batches) -> None:
        """Write many batches in the quickest way there is."""
        for batch in batches:
            self.put(*batch)

    def warm(self) -> bool:
        """Bring what was loaded into memory; return False where asking for it must do that."""
        return False

    def settle(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until the puts so far cause no more work."""

    def close(self) -> None:  # noqa: B027
        """Let go of the system."""


@dataclass(frozen=True)
class Place:
    """A system at work: what its client is given, and its server, None where there is none."""

    address: Any
    server: int | None = None


class System(ABC):
    """One system under comparison."""

    key: ClassVar[str]
    name: ClassVar[str]
    note: ClassVar[str] = ""
    """What a reader must know of the figures."""
    client: ClassVar[type[Client]]
    threads: ClassVar[tuple[int, ...]] = (4,)
    """Numbers of client threads to try besides one."""
    reads: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    durable: ClassVar[bool] = True
    """Whether what was put survives a power cut."""
    keeps: ClassVar[bool] = True
    """Whether what was loaded outlives the process."""
    rows_max: ClassVar[int | None] = None
    """The most entries it is given, where loading more would take longer than all the rest."""
    batch_rows_max: ClassVar[int | None] = None
    """The largest batch it is given, where a batch is a loop over single requests anyway."""
    packages: ClassVar[tuple[str, ...]] = ()
    programs: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = "make bench-peers-install"

    def missing(self) -> str:
        """Return what it lacks on this machine, "" if nothing."""
        absent = [f"the package {name}" for name in self.packages if importlib.util.find_spec(name) is None]
        absent += [f"the program {name}" for name in self.programs if not program(name)]
        return f"{' and '.join(absent)} not found ({self.install})" if absent else ""

    @abstractmethod
    def version(self) -> str:
        """Return the versions of what is measured."""

    def batch_rows(self, wanted: int) -> int:
        """Return how large a batch it is given where `wanted` is asked for."""
        return min(wanted, self.batch_rows_max or wanted)

    def disk_bytes(self, directory: Path) -> int:
        """Return the disk that the entries in `directory` take."""
        return disk_bytes(directory)

    @abstractmethod
    def served(self, directory: Path) -> AbstractContextManager[Place]:
        """Serve what `directory` holds (nothing at first) until the context ends."""

    def build(self, directory: Path, batches: Batches) -> None:
        """Fill an empty directory; called in a process of its own."""
        with self.served(directory) as place:
            client = self.client(place.address)
            try:
                client.load(batches)
            finally:
                client.close()


class Pool:
    """Connections for any number of threads: one is borrowed for a call, and made where none is free."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._free: list[Any] = []
        self._all: list[Any] = []

    @contextmanager
    def borrowed(self) -> Iterator[Any]:
        """Lend a connection; one whose call failed is not lent again."""
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._connect()
            self._all.append(connection)
        yield connection
        self._free.append(connection)

    def close(self) -> None:
        """Close all."""
        for connection in self._all:
            connection.close()


def program(name: str) -> str:
    """Return the path of a program, "" if there is none; those of PyPI stand beside Python's own."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=str(beside)) or shutil.which(name) or ""


def output(*command: str) -> str:
    """Return the first line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((done.stdout or done.stderr).strip().splitlines() or ["?"])[0]


def package_version(name: str) -> str:
    """Return "name 1.2.3"."""
    return f"{name} {importlib.metadata.version(name)}"


def unordered(values: list[bytes | None], order: NDArray[np.int64] | None) -> Columns:
    """Return the answer from the values of `ids[order]` (None: of `ids`), None where an ID is absent."""
    n = len(values)
    try:
        packed = np.frombuffer(b"".join(values), kvmeta.LOCATION)  # type: ignore[arg-type]
    except TypeError:  # some are absent
        found = np.fromiter((value is not None for value in values), np.bool_, n)
        packed = np.zeros(n, kvmeta.LOCATION)
        packed[found] = np.frombuffer(b"".join([v for v in values if v is not None]), kvmeta.LOCATION)
    else:
        found = np.ones(n, np.bool_)
    if order is None:
        return Columns(found, packed)
    answer = Columns(np.empty_like(found), np.empty_like(packed))
    answer.found[order], answer.locations[order] = found, packed  # type: ignore[index]
    return answer


def matched(ids: Ids, got: Ids, locations: Locations) -> Columns:
    """Return the answer for `ids` from rows in any order, each ID at most once."""
    found, out = np.zeros(len(ids), np.bool_), np.zeros(len(ids), kvmeta.LOCATION)
    if len(got):
        held = halves(got)
        order = np.argsort(held)
        held = held[order]
        place = np.searchsorted(held, halves(ids)).clip(max=len(held) - 1)
        row = order[place]
        found = got[row].view("V16") == ids.view("V16")
        out[found] = locations[row[found]]
    return Columns(found, out)


def halves(ids: Ids) -> NDArray[np.uint64]:
    """Return the first half of each ID as a number, in the order of the IDs; in this workload none tie.

    Sequential IDs differ in the second half only: there it is that one.
    """
    both = np.ascontiguousarray(ids).view(">u8").reshape(-1, 2).astype(np.uint64)
    return both[:, 0] if both[:, 0].any() else both[:, 1]
