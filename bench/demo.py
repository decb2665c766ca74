"""The main job, end to end: pack real small files, index them, serve them, look each up and read each back.

    python -m bench.demo [--into demo] [--source DIR]

    source ── pack ──> shards ── index ──> catalog ── kvmeta serve ──> look up, read back, verify

The source is the interpreter's own standard library. What it makes lies below `--into`, made anew. The store
is filled embedded and closed; all questions go over gRPC to its server, a process of its own on a free port.
Ends with a small table and `demo ok: files=N verified=N`; any failure exits non-zero.
"""

from __future__ import annotations

import shutil
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

import kvmeta
from bench.servers import Kvmeta
from kvmeta import compiling
from kvmeta.cli.progress import file_progress_bar, progress_bar
from kvmeta.cli.render import size, table
from kvmeta.errors import os_errors
from kvmeta.sources import index, pack

BATCH = 4096
READ_BATCH = 512
SHARD_BYTES = 16 << 20


def batches(ids: np.ndarray, n: int) -> Iterator[np.ndarray]:
    """Yield `ids` in slices of up to n."""
    for start in range(0, len(ids), n):
        yield ids[start : start + n]


def look_up(ds: kvmeta.Dataset, ids: np.ndarray) -> int:
    """Return how many of `ids` are found, asked in batches."""
    with progress_bar("looking up", None) as note:
        found = 0
        for batch in batches(ids, BATCH):
            found += int(ds.lookup(batch).found.sum())
            if note is not None:
                note(found, len(ids))
    return found


def read_back(ds: kvmeta.Dataset, names: list[str], ids: np.ndarray, root: Path) -> tuple[int, int]:
    """Read every file through its location (its CRC-32C is checked) and compare it with the one on disk.

    Return (files that match, their bytes).
    """
    verified = total = 0
    with progress_bar("reading back", None) as note:
        for start in range(0, len(names), READ_BATCH):
            files = ds.read(ids[start : start + READ_BATCH])
            for name, data in zip(names[start : start + READ_BATCH], files, strict=True):
                if data is None or data != (root / name).read_bytes():
                    raise click.ClickException(f"{name} came back other than it went in")
                verified, total = verified + 1, total + len(data)
            if note is not None:
                note(verified, len(names))
    return verified, total


@click.command()
@click.option("--into", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--source", type=click.Path(path_type=Path, exists=True), default=None)
def main(into: Path, source: Path | None) -> None:
    """Run the demonstration."""
    compiling.tell_by(lambda words: click.echo(words, err=True))
    source = (source or Path(sysconfig.get_path("stdlib"))).resolve()
    shards, catalog = into / "shards", into / "catalog"
    with os_errors("clearing", into):
        for old in (shards, catalog):
            shutil.rmtree(old, ignore_errors=True)
        into.mkdir(parents=True, exist_ok=True)
    click.echo(f"packing {source} into {shards}, indexing it into {catalog}")
    with file_progress_bar("packing", None) as note:
        packed = pack(source, shards, shard_bytes=SHARD_BYTES, skip_unreadable=True, progress=note)
    rows: list[tuple[str, str, str, str]] = []

    def timed(step: str, files: int, total: int | None, seconds: float) -> None:
        rows.append(
            (step, f"{files:,}", "" if total is None else size(total), f"{files / max(seconds, 1e-9):,.0f}")
        )

    timed("pack", packed.files, packed.bytes, packed.seconds)
    with kvmeta.open(catalog) as store:
        click.echo("indexing")
        with file_progress_bar("indexing", None) as note:
            indexed = index(store.dataset(), store.volumes, [shards], progress=note)
        timed("index", indexed.files, indexed.bytes, indexed.seconds)
    names = [name for part in names_in(shards) for name in part]
    ids = kvmeta.ids_from_keys(names)
    with Kvmeta(catalog.resolve()) as server, kvmeta.open(server.target) as store:
        click.echo(f"serving it at {server.target}")
        ds = store.dataset()
        look_up(ds, ids[:1])
        started = time.perf_counter()
        found = look_up(ds, ids)
        timed("look up", found, None, time.perf_counter() - started)
        if found != packed.files or found != indexed.files:
            raise click.ClickException(f"{packed.files} files packed, {indexed.files} indexed, {found} found")
        started = time.perf_counter()
        verified, total = read_back(ds, names, ids, source.parent)
        timed("read back", verified, total, time.perf_counter() - started)
        store.flush()  # from the log into pages, which verify reads
        report = store.verify()
        if not report.ok or not report.pages:
            raise click.ClickException(f"verify read {report.pages} pages and found {report.damages}")
    table(["step", "files", "bytes", "files/s"], rows)
    click.echo(f"demo ok: files={packed.files} verified={verified}")


def names_in(shards: Path) -> Iterator[list[str]]:
    """Yield the names of the packed files, as tar's own reader finds them."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            yield [member.name for member in archive if member.isreg()]


if __name__ == "__main__":
    main()
