"""Mooncake's master through its Python client: what a KV-cache store of today knows of its objects.

Lookups are `batch_is_exist`, which tells only that a key is there; puts are `put_batch` of 24-byte values
into memory that the client lends. Nothing of it outlives the processes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.servers import Server, free_port, listening
from bench.systems.system import Client, Columns, Ids, Locations, Place, System, package_version, program

_SEGMENT_BYTES = 4 << 30  # an object takes more than its 24 bytes
_BUFFER_BYTES = 64 << 20


class Master(Server):
    """mooncake_master, logging to nowhere."""

    def __init__(self) -> None:
        self.port, metrics = free_port(), free_port()
        words = [
            f"--rpc_port={self.port}", "--rpc_address=127.0.0.1", f"--metrics_port={metrics}",
            "--metrics_host=127.0.0.1", "--default_kv_lease_ttl=0", "--enable_metric_reporting=false",
            "--minloglevel=2", "--logtostderr=true",
        ]  # fmt: skip
        super().__init__(
            [program("mooncake_master"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.wait(lambda: listening(self.port))


class MooncakeClient(Client):
    """A client that lends the memory; `address` is the master's port."""

    def __init__(self, address: int) -> None:
        os.environ.setdefault("MC_STORE_MEMCPY", "1")  # values go by memory, not by a socket
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it logs there whatever it is told
        from mooncake.store import MooncakeDistributedStore

        self._store: Any = MooncakeDistributedStore()
        master = f"127.0.0.1:{address}"
        failed = self._store.setup(
            f"127.0.0.1:{free_port()}", "P2PHANDSHAKE", _SEGMENT_BYTES, _BUFFER_BYTES, "tcp", "", master
        )
        if failed:
            raise RuntimeError(f"Mooncake's client did not start: {failed}")

    def lookup(self, ids: Ids) -> Columns:
        """Return which of `ids` are there."""
        answers = self._store.batch_is_exist(_keys(ids))
        return Columns(np.array(answers) == 1, None)

    def put(self, ids: Ids, locations: Locations) -> None:
        """Put all by one put_batch."""
        failed = self._store.put_batch(_keys(ids), locations.view("V24").tolist())
        if failed:
            raise RuntimeError(f"Mooncake refused a batch: {failed}")

    def close(self) -> None:
        """Close the client."""
        self._store.close()


class Mooncake(System):
    """The master, in memory."""

    key, name = "mooncake", "Mooncake master"
    note = "lookups tell only that a key is there"
    client = MooncakeClient
    packages, programs = ("mooncake",), ("mooncake_master",)
    durable = keeps = False
    rows_max = 1_000_000

    def version(self) -> str:
        """Return the version of the package."""
        return package_version("mooncake-transfer-engine-non-cuda")

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Start the master."""
        with Master() as server:
            yield Place(server.port, server.pid)


def _keys(ids: Ids) -> list[str]:
    text = ids.tobytes().hex()
    return [text[i : i + 32] for i in range(0, len(text), 32)]
