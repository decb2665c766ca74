"""The peer over the network: Redis through redis-py with hiredis, as a store of the same entries.

A batch must become a list of `bytes` and its answer an array again, for that is what a caller with numpy
columns pays. One client object serves all threads; redis-py gives each a connection of its own.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import redis
from numpy.typing import NDArray

import kvmeta
from bench.peers import Columns
from bench.workloads import Catalogue

LOAD_BATCH_ROWS = 4096


class Table:
    """What a redis-server on a loopback port holds: 16-byte keys, 24-byte values."""

    def __init__(self, port: int) -> None:
        self._redis = redis.Redis(port=port)

    def lookup(self, ids: NDArray[np.void]) -> Columns:
        """Return the locations of `ids`, all of them there, by one MGET."""
        values = self._redis.mget(ids.tolist())
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
        return Columns(found, np.frombuffer(b"".join(values), kvmeta.LOCATION))

    def put(self, ids: NDArray[np.void], locations: NDArray[np.void]) -> None:
        """Set all by one MSET."""
        pairs = zip(ids.tolist(), locations.view("V24").tolist(), strict=True)
        self._redis.execute_command("MSET", *chain.from_iterable(pairs))

    def load(self, catalogue: Catalogue, rows: int) -> None:
        """Set the first `rows` entries of a catalogue."""
        for batch in catalogue.batches(0, rows, LOAD_BATCH_ROWS):
            self.put(*batch)

    def entries(self) -> int:
        """Return how many entries it holds."""
        return int(self._redis.dbsize())

    def memory_bytes(self) -> int:
        """Return what it uses, as it says itself."""
        return int(self._redis.info("memory")["used_memory"])

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
