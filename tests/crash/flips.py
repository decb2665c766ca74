"""Every byte: each byte of each kind of file a store has, damaged in each way, and what comes of it.

    python -m tests.crash.flips [--jobs N] [--part I/N] [--work DIR] [--json FILE]

The cases are dealt with by processes, for one may end its process: that, too, is told and counted. What is
done is noted in --work, so that the same command goes on after an interruption. Parts may be done apart, in
copies of one --work; their done.jsonl, put together, is the whole. Exit status 1 where an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from kvmeta.cli.progress import progress_bar
from kvmeta.engine import engine
from tests.crash import node_specimen, specimens
from tests.crash.faults import Fault
from tests.crash.node_specimen import NodeSpecimen
from tests.crash.processes import ends_well, fresh
from tests.crash.specimens import WRONG, StoreSpecimen

CASE_S = 60.0  # a case takes milliseconds
UNIT = 400  # cases dealt with between two notes of what is done
_LINE_S = 30.0
Specimen = StoreSpecimen | NodeSpecimen


@dataclass
class Unit:
    """Some faults of one file, and the verdicts over them."""

    name: str
    state: str
    kind: str
    faults: list[Fault]
    verdicts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def counts(self) -> Counter[tuple[str, str, str, str]]:
        """Return how often each (state, file kind, case kind, verdict) came about."""
        return Counter(
            (self.state, self.kind, fault.kind, verdict)
            for fault, verdict in zip(self.faults, self.verdicts, strict=True)
        )


def fast_directory() -> Path:
    """Return where a sync costs nothing, if there is such a place: nothing is judged by what it leaves."""
    shared_memory = Path("/dev/shm")
    return shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())


def specimens_below(directory: Path) -> dict[str, Specimen]:
    """Return the specimens below `directory`, by state."""
    stores = [StoreSpecimen(directory, state) for state in specimens.STATES]
    return {each.state: each for each in (*stores, NodeSpecimen(directory))}


def build(directory: Path) -> None:
    """Make all specimens below `directory`, in a process of its own, unless they are there."""
    done = directory / "built"
    if not done.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        ends_well(fresh(specimens.build, directory))
        node_specimen.build(directory)
        done.touch()


def units(directory: Path, choose: Callable[[list[Fault]], list[Fault]] = list) -> Iterator[Unit]:
    """Yield all cases; of each file those that `choose` returns."""
    for state, specimen in specimens_below(directory).items():
        for file in specimen.files():
            chosen = choose(list(specimen.faults(file)))
            for start in range(0, len(chosen), UNIT):
                name = f"{state}/{file}/{start}"
                yield Unit(name, state, specimen.kind_of(file), chosen[start : start + UNIT])


def deal(directory: Path, hear: Connection, tell: Connection) -> None:
    """Judge the faults that come by `hear`, in a process of its own; send a verdict and a reason for each."""
    tempfile.tempdir = str(directory)  # readers' links to the log: on the same fast file system
    engine._REFRESH_TRIES = 1  # no second look, as there is where a live writer moves the log on
    judges = {}
    while (unit := hear.recv()) is not None:
        state, cases = unit
        if state not in judges:
            judges[state] = specimens_below(directory)[state].judge()
        for fault in cases:
            try:
                verdict, why = judges[state](fault), ""
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer a user may get
                verdict, why = WRONG, f"{fault}: {error!r}"
                judges.pop(state).close()
                judges[state] = specimens_below(directory)[state].judge()
            tell.send((verdict, why))
    for judge in judges.values():
        judge.close()


class Worker:
    """A process that deals with units, started again where a case ends it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.unit: Unit | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.hear, tell = context.Pipe(duplex=False)
        hear, self._tell = context.Pipe(duplex=False)
        self._process = fresh(deal, self._directory, hear, tell)
        tell.close()
        hear.close()
        self._heard = time.monotonic()

    def give(self, unit: Unit) -> None:
        """Let it deal with a unit."""
        self.unit = unit
        self._heard = time.monotonic()
        self._tell.send((unit.state, unit.faults[len(unit.verdicts) :]))

    def take(self) -> Unit | None:
        """Take a verdict that has come; return the unit where it was its last."""
        assert self.unit is not None
        try:
            verdict, why = self.hear.recv()
        except EOFError:
            self._process.join()
            return self._ended(f"ended its process, status {self._process.exitcode}")
        return self._note(verdict, why)

    def check(self) -> Unit | None:
        """End a case that takes too long; return the unit where it was its last."""
        if self.unit is None or time.monotonic() - self._heard < CASE_S:
            return None
        self._process.kill()
        self._process.join()
        return self._ended("hung")

    def _ended(self, why: str) -> Unit | None:
        unit = self.unit
        assert unit is not None
        fault = unit.faults[len(unit.verdicts)]
        self.hear.close()
        self._start()
        done = self._note(WRONG, f"{fault}: {why}")
        if done is None:
            self.give(unit)
        return done

    def _note(self, verdict: str, why: str) -> Unit | None:
        unit = self.unit
        assert unit is not None
        self._heard = time.monotonic()
        unit.verdicts.append(verdict)
        if why:
            unit.problems.append(why)
        if len(unit.verdicts) < len(unit.faults):
            return None
        self.unit = None
        return unit

    def stop(self) -> None:
        """Let the process end."""
        self._tell.send(None)
        ends_well(self._process)


def run(directory: Path, work: Iterable[Unit], jobs: int) -> Iterator[Unit]:
    """Yield the units as they are done."""
    waiting = iter(work)
    workers = [Worker(directory) for _ in range(jobs)]
    for worker in workers:
        unit = next(waiting, None)
        if unit is not None:
            worker.give(unit)
    while busy := [worker for worker in workers if worker.unit is not None]:
        ready = set(wait([worker.hear for worker in busy], timeout=1.0))
        for worker in busy:
            done = worker.take() if worker.hear in ready else worker.check()
            if done is not None:
                unit = next(waiting, None)
                if unit is not None:
                    worker.give(unit)
                yield done
    for worker in workers:
        worker.stop()


class Journal:
    """The units done so far, a line each in a file, and the sums over them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.done: set[str] = set()
        self.counts: Counter[tuple[str, str, str, str]] = Counter()
        self.problems: list[str] = []
        lines = file.read_text().splitlines() if file.exists() else []
        for line in lines:
            noted = json.loads(line)
            self._add(noted["unit"], {tuple(key): n for *key, n in noted["counts"]}, noted["problems"])

    def note(self, unit: Unit) -> None:
        """Note a unit that is done."""
        counts, problems = unit.counts(), [f"{unit.state}: {problem}" for problem in unit.problems]
        told = {"unit": unit.name, "counts": [[*key, n] for key, n in counts.items()], "problems": problems}
        with open(self._file, "a") as file:
            file.write(json.dumps(told) + "\n")
        self._add(unit.name, counts, problems)

    def _add(self, name: str, counts: dict[tuple[str, ...], int], problems: list[str]) -> None:
        self.done.add(name)
        self.counts.update(counts)  # type: ignore[arg-type]
        self.problems += problems


def table(counts: Counter[tuple[str, str, str, str]], columns: Sequence[int]) -> str:
    """Return the counts as a table by the given parts of their keys (0 state, 1 file kind, 2 case kind)."""
    rows: dict[tuple[str, ...], Counter[str]] = {}
    for key, n in sorted(counts.items()):
        rows.setdefault(tuple(key[column] for column in columns), Counter())[key[3]] += n
    rows[("total",) + ("",) * (len(columns) - 1)] = sum(rows.values(), Counter())
    titles = [("state", "file kind", "case kind")[column] for column in columns]
    lines = [(*titles, "cases", *specimens.VERDICTS)]
    for row, verdicts in rows.items():
        told = [f"{verdicts[verdict]:,}" for verdict in specimens.VERDICTS]
        lines.append((*row, f"{verdicts.total():,}", *told))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < len(columns) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done yet; print the tables and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.flips", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--work", type=Path, default=fast_directory() / "kvmeta-flips", help="specimens and what is done"
    )
    parser.add_argument("--part", default="1/1", help="I/N: only each N-th 400 cases, from the I-th on")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="where to write the counts")
    given = parser.parse_args(arguments)
    build(given.work)
    journal = Journal(given.work / "done.jsonl")
    part, parts = map(int, given.part.split("/"))
    every = list(units(given.work))[part - 1 :: parts]
    total = sum(len(unit.faults) for unit in every)
    done = sum(len(unit.faults) for unit in every if unit.name in journal.done)
    told = time.monotonic()
    print(f"{total:,} cases, {done:,} of them done before", flush=True)
    with progress_bar("damaging", None) as update:
        for unit in run(given.work, (unit for unit in every if unit.name not in journal.done), given.jobs):
            journal.note(unit)
            done += len(unit.faults)
            if update is not None:
                update(done, total)
            elif time.monotonic() - told > _LINE_S:
                told = time.monotonic()
                print(f"{done:,} of {total:,}, {len(journal.problems)} wrong", flush=True)
    return report(journal, given.json)


def report(journal: Journal, file: Path | None) -> int:
    """Print the tables, write the counts to `file`; return the exit status."""
    print("\n" + table(journal.counts, (0, 1)))
    print("\n" + table(journal.counts, (2,)))
    for problem in journal.problems[:50]:
        print(f"wrong: {problem}")
    if file is not None:
        keys = ("state", "file", "case", "verdict")
        counts = [
            dict(zip(keys, key, strict=True)) | {"count": n} for key, n in sorted(journal.counts.items())
        ]
        file.write_text(json.dumps({"counts": counts, "problems": journal.problems}, indent=1) + "\n")
    return 1 if journal.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
