"""PostgreSQL 15 through psycopg 3: entries in a table, asked by `= ANY($1)`, loaded and put by COPY.

A batch of IDs becomes one binary array parameter, and the answer comes back as one value, each row's ID and
location one after the other: no Python object for a row on either way. COPY does not replace rows, so a put
takes fresh IDs only; the benchmark puts no others.

PostgreSQL does not run as root: there it runs as the user `postgres` that its package makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import kvmeta
from bench.built import disk_bytes
from bench.servers import Server, free_port
from bench.systems.system import (
    Batches,
    Client,
    Columns,
    Ids,
    Locations,
    Place,
    Pool,
    System,
    matched,
    output,
    package_version,
)

_PROGRAMS = Path("/usr/lib/postgresql/15/bin")
_USER = "bench"
_PIPELINED = 4
_UUID, _TEXT, _INT8 = 2950, 25, 20  # type numbers, fixed by PostgreSQL's catalogue
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_SETTINGS = {
    "shared_buffers": "4GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "wal_compression": "off",
    "max_connections": "32",
    "jit": "off",
    "work_mem": "256MB",
    "maintenance_work_mem": "1GB",
    "autovacuum": "off",
    "random_page_cost": "1.1",
}


class Postgres(Server):
    """A server on the cluster in `directory`, made where there is none; it trusts everyone on loopback."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        owner: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if not (directory / "PG_VERSION").exists():
            directory.mkdir(parents=True, exist_ok=True)
            if owner:
                shutil.chown(directory, **owner)
            words = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--locale=C", "--pgdata"]
            done = subprocess.run(
                [_PROGRAMS / "initdb", *words, directory],
                cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, **owner,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"initdb: {done.stderr.strip()}")
        settings = _SETTINGS | {"port": str(self.port), "listen_addresses": "127.0.0.1"}
        settings["unix_socket_directories"] = ""
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        super().__init__(
            [str(_PROGRAMS / "postgres"), "-D", str(directory), *words],
            cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **owner,
        )  # fmt: skip
        self.wait(self._answers)

    def _answers(self) -> bool:
        """Return whether it serves; while it starts it accepts connections, but refuses what they ask."""
        import psycopg

        try:
            psycopg.connect(_address(self.port), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class PostgresClient(Client):
    """Connections to the server on loopback port `address`, one a thread."""

    create: ClassVar[str] = "CREATE TABLE IF NOT EXISTS entries (id uuid PRIMARY KEY, location bytea)"
    copy: ClassVar[str] = "COPY entries (id, location) FROM STDIN (FORMAT binary)"
    select: ClassVar[str] = (
        "SELECT string_agg(uuid_send(id) || location, ''::bytea) FROM entries WHERE id = ANY(%b)"
    )
    fields: ClassVar[list[tuple[str, str]]] = [("id", "V16"), ("location", "V24")]

    def __init__(self, address: int) -> None:
        self._address = address
        self._pool = Pool(self._connect)
        with self._pool.borrowed() as connection:
            connection.execute(self.create)

    def lookup(self, ids: Ids) -> Columns:
        """Return the locations of `ids` by one SELECT."""
        with self._pool.borrowed() as connection:
            packed = self._select(connection, ids).fetchone()[0]
        return self._columns(ids, packed)

    def lookups(self, batches: Sequence[Ids]) -> Iterator[Columns]:
        """Send SELECTs ahead of their answers."""
        for start in range(0, len(batches), _PIPELINED):
            part = batches[start : start + _PIPELINED]
            with self._pool.borrowed() as connection, connection.pipeline():
                cursors = [self._select(connection, ids) for ids in part]
                answers = [cursor.fetchone()[0] for cursor in cursors]
            yield from map(self._columns, part, answers)

    def put(self, ids: Ids, locations: Locations) -> None:
        """Copy a batch in, in a transaction of its own."""
        with self._pool.borrowed() as connection, connection.cursor().copy(self.copy) as copy:
            copy.write(_COPY_HEADER + self.rows(ids, locations).tobytes() + _COPY_END)

    def load(self, batches: Batches) -> None:
        """Copy all batches in by one COPY, then bring the table in order."""
        with self._pool.borrowed() as connection:
            with connection.cursor().copy(self.copy) as copy:
                copy.write(_COPY_HEADER)
                for batch in batches:
                    copy.write(self.rows(*batch).tobytes())
                copy.write(_COPY_END)
            connection.execute(f"VACUUM ANALYZE {self.copy.split()[1]}")
            connection.execute("CHECKPOINT")

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def arguments(self, ids: Ids) -> tuple[Any, ...]:
        """Return the parameters of `select`."""
        return (_array(ids, _UUID),)

    def rows(self, ids: Ids, locations: Locations) -> Any:
        """Return rows of `copy` in COPY's binary form, as a structured array."""
        return _copied(self.fields, [ids, locations])

    def _columns(self, ids: Ids, packed: bytes | None) -> Columns:
        rows = np.frombuffer(packed or b"", [("id", kvmeta.ID), ("location", kvmeta.LOCATION)])
        return matched(ids, rows["id"], rows["location"])

    def _select(self, connection: Any, ids: Ids) -> Any:
        return connection.execute(self.select, self.arguments(ids), prepare=True, binary=True)

    def _connect(self) -> Any:
        import psycopg

        connection = psycopg.connect(_address(self._address), autocommit=True)
        connection.adapters.register_dumper(_Array, _dumper())
        return connection


class InodeClient(PostgresClient):
    """A table as file systems have it that keep their metadata in PostgreSQL: (directory, name) -> file."""

    create = (
        "CREATE TABLE IF NOT EXISTS inodes (parent int8, name text, location bytea,"
        " PRIMARY KEY (parent, name))"
    )
    copy = "COPY inodes (parent, name, location) FROM STDIN (FORMAT binary)"
    select = (
        "SELECT string_agg(decode(name, 'hex') || location, ''::bytea)"
        " FROM unnest(%b::int8[], %b::text[]) AS asked (parent, name) JOIN inodes USING (parent, name)"
    )
    fields: ClassVar = [("parent", "V8"), ("name", "V32"), ("location", "V24")]

    def arguments(self, ids: Ids) -> tuple[Any, ...]:
        """Return directories and names."""
        return _array(_parents(ids), _INT8), _array(_names(ids), _TEXT)

    def rows(self, ids: Ids, locations: Locations) -> Any:
        """Return rows with their directories and names."""
        return _copied(self.fields, [_parents(ids), _names(ids), locations])


class PostgresSystem(System):
    """A table of UUIDs and packed locations."""

    key, name = "postgres", "PostgreSQL 15"
    client = PostgresClient
    packages = ("psycopg",)

    def missing(self) -> str:
        """Return what it lacks: the programs of Debian's package are on no path."""
        lacks = super().missing()
        return lacks or ("" if _PROGRAMS.exists() else f"{_PROGRAMS} not found ({self.install})")

    def version(self) -> str:
        """Return the versions of server and client."""
        return f"{output(str(_PROGRAMS / 'postgres'), '--version')}, {package_version('psycopg')}"

    def disk_bytes(self, directory: Path) -> int:
        """Return the disk of tables and indexes: the log may be dropped after a checkpoint."""
        return disk_bytes(directory, without="pg_wal")

    @contextmanager
    def served(self, directory: Path) -> Iterator[Place]:
        """Start the server."""
        with Postgres(directory / "cluster") as server:
            yield Place(server.port, server.pid)


class InodeSystem(PostgresSystem):
    """A table of directory entries."""

    key, name = "postgres-inodes", "PostgreSQL 15, table of inodes"
    note = (
        "keyed by directory and name, 16,384 directories, as file systems do that keep metadata in PostgreSQL"
    )
    client = InodeClient


class _Array:
    """A one-dimensional array in PostgreSQL's binary form, and its type's number."""

    def __init__(self, data: bytes, oid: int) -> None:
        self.data, self.oid = data, oid


def _dumper() -> type:
    from psycopg.abc import Buffer
    from psycopg.adapt import Dumper, PyFormat
    from psycopg.pq import Format

    arrays = {_UUID: 2951, _TEXT: 1009, _INT8: 1016}

    class ArrayDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: _Array) -> Buffer:
            return obj.data

        def get_key(self, obj: _Array, format: PyFormat) -> Any:  # noqa: A002 - psycopg's name
            return type(obj), obj.oid

        def upgrade(self, obj: _Array, format: PyFormat) -> Dumper:  # noqa: A002
            dumper = type(self)(type(obj))
            dumper.oid = arrays[obj.oid]
            return dumper

    return ArrayDumper


def _array(column: Any, oid: int) -> _Array:
    """Return fixed-size elements as an array: dimensions, no NULLs, type, length, lower bound; then each."""
    size = column.dtype.itemsize
    rows = np.empty(len(column), [("size", ">i4"), ("value", f"V{size}")])
    rows["size"], rows["value"] = size, column.view(f"V{size}")
    return _Array(np.array([1, 0, oid, len(column), 1], ">i4").tobytes() + rows.tobytes(), oid)


def _copied(fields: list[tuple[str, str]], columns: list[Any]) -> Any:
    layout: list[tuple[str, str]] = [("count", ">i2")]
    for name, kind in fields:
        layout += [(f"{name}_size", ">i4"), (name, kind)]
    rows = np.empty(len(columns[0]), layout)
    rows["count"] = len(fields)
    for (name, kind), column in zip(fields, columns, strict=True):
        rows[f"{name}_size"] = np.dtype(kind).itemsize
        rows[name] = column.view(kind)
    return rows


def _parents(ids: Ids) -> Any:
    """Return each ID's directory: 16,384 of them, by the ID's last bytes."""
    last = ids.view(np.uint8).reshape(-1, 16)[:, 14:]
    return (np.ascontiguousarray(last).view(">u2").reshape(-1) % 16_384).astype(">i8")


def _names(ids: Ids) -> Any:
    """Return each ID in hexadecimal."""
    return np.frombuffer(ids.tobytes().hex().encode(), "V32")


def _address(port: int) -> str:
    return f"host=127.0.0.1 port={port} user={_USER} dbname=postgres"
