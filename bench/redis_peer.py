"""The peer over the network: Redis through redis-py with hiredis, as a store of the same entries.

A batch must become a list of `bytes` and its answer an array again, for that is what a caller with numpy
columns pays. One client object serves all threads; redis-py gives each a connection of its own.

Loading takes longer than measuring, so it is done once per size, below the data directory:

    redis-20000000/built.json    what was loaded; written last, so a half-made dump has none
    redis-20000000/dump.rdb      what redis-server starts on; only ever read from then on
"""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import redis
from numpy.typing import NDArray

import kvmeta
from bench import servers
from bench.peers import Columns
from bench.timing import Progress
from bench.workloads import RECIPE, Catalogue

LOAD_BATCH_ROWS = 4096


class Table:
    """What a redis-server on a loopback port holds: 16-byte keys, 24-byte values."""

    def __init__(self, port: int) -> None:
        self._port = port
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
        with Progress(f"redis, {rows:,} rows, load", rows) as progress:
            for batch in progress.counted(catalogue.batches(0, rows, LOAD_BATCH_ROWS)):
                self.put(*batch)

    def save(self) -> None:
        """Write what it holds to its dump, and wait until that is done."""
        with Progress("redis, dump"), redis.Redis(port=self._port, socket_timeout=None) as patient:
            patient.save()

    def expect(self, rows: int) -> None:
        """Raise AssertionError unless it holds `rows` entries."""
        held = int(self._redis.dbsize())
        if held != rows:
            raise AssertionError(f"redis holds {held} entries instead of {rows}")

    def memory_bytes(self) -> int:
        """Return what it uses, as it says itself."""
        return int(self._redis.info("memory")["used_memory"])

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def dumped(data: Path, catalogue: Catalogue, rows: int) -> Path:
    """Return the directory of a dump of the first `rows` entries, made now unless a whole one is there."""
    directory = data / f"redis-{rows}"
    built = directory / "built.json"
    recipe = {"recipe": RECIPE, "seed": catalogue.seed, "rows": rows}
    if built.exists() and json.loads(built.read_text())["recipe"] == recipe:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    with servers.Redis(directory) as server:
        table = Table(server.port)
        table.load(catalogue, rows)
        table.expect(rows)
        table.save()
        table.close()
    unfinished = directory / "built.new"
    unfinished.write_text(json.dumps({"recipe": recipe}))
    unfinished.replace(built)
    return directory
