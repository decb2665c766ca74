"""The long forms of the fault tests, which go on where they were stopped.

python -m tests.system power-cuts --work DIR [--cuts N] [--json FILE]
python -m tests.system syscalls --work DIR [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.system import failing_calls, power_cuts
from tests.system.disks import MAKE
from tests.system.failing_calls import Point
from tests.system.progress import Progress, table

FILE_SYSTEMS = tuple(MAKE)
CONTROLS = 10  # cuts of a file system without syncs

Record = dict[str, Any]


def cut_power(work: Path, total: int) -> Record:
    """Cut the power `total` times, and some times without syncs; return the summary."""
    synced = _cut(work / "power-cuts.jsonl", total, power_cuts.CUTS_A_DISK)
    control = _cut(work / "power-cuts-control.jsonl", CONTROLS * len(FILE_SYSTEMS), 0)
    rows = []
    for name in FILE_SYSTEMS:
        ours, others = _of(synced, name), _of(control, name)
        acknowledged = sum(each["acknowledged"] for each in ours)
        rows.append([name, len(ours), acknowledged, _wrong(ours), len(others), _wrong(others)])
    heads = ["file system", "cuts", "acknowledged", "losses", "cuts without syncs", "losses without syncs"]
    print(table(heads, rows))
    hit = {
        name: Counter(what for each in _of(synced, name) for what in each["under_way"])
        for name in FILE_SYSTEMS
    }
    print()
    print(
        table(
            ["under way", *FILE_SYSTEMS],
            [[what, *(hit[name][what] for name in FILE_SYSTEMS)] for what in power_cuts.WORK],
        )
    )
    return {
        "passed": not _wrong(synced) and all(row[-1] for row in rows),
        "file_systems": [dict(zip(heads, row, strict=True)) for row in rows],
        "under_way": hit,
        "wrong": [each for each in synced if each["wrong"]],
    }


def _cut(file: Path, total: int, cuts_a_disk: int) -> list[Record]:
    """Cut until `file` has `total` records; `cuts_a_disk` = 0: once a disk, without syncs."""
    progress = Progress(file, total)
    while len(progress.records) < total:
        name = min(FILE_SYSTEMS, key=lambda each: len(_of(progress.records, each)))
        first = len(_of(progress.records, name))
        left = -(-total // len(FILE_SYSTEMS)) - first
        with tempfile.TemporaryDirectory(dir=file.parent) as directory:
            if cuts_a_disk:
                aims = power_cuts.aims_of(name, first, min(left, cuts_a_disk))
                cuts = power_cuts.cut_over_and_over(Path(directory), name, aims)
            else:
                cuts = power_cuts.cut_without_syncs(Path(directory), name)
            for cut in cuts:
                progress.add(asdict(cut))
    return progress.records


def _of(records: Sequence[Record], filesystem: str) -> list[Record]:
    return [each for each in records if each["filesystem"] == filesystem]


def _wrong(records: Sequence[Record]) -> int:
    return sum(each["wrong"] is not None for each in records)


def fail_calls(work: Path, _: int) -> Record:
    """Try every point of the workload; return the summary."""
    known = work / "syscalls-points.json"
    if not known.exists():
        found = [asdict(point) for point in failing_calls.points(work)]
        known.write_text(json.dumps(found))
    points = [Point(**each) for each in json.loads(known.read_text())]
    progress = Progress(work / "syscalls.jsonl", len(points))
    done = {Point(each["call"], each["index"], each["fault"]) for each in progress.records}
    for point in points:
        if point not in done:
            progress.add(asdict(point) | asdict(failing_calls.hit(work, point)))
    tried = Counter((each["call"], each["fault"]) for each in progress.records)
    faults = sorted({fault for _, fault in tried})
    calls = sorted({call for call, _ in tried}, key=lambda call: -sum(tried[call, fault] for fault in faults))
    rows = [[call, *(tried[call, fault] or "" for fault in faults)] for call in calls]
    print(table(["call", *faults], rows))
    fired = sum(each["fired"] for each in progress.records)
    ended = Counter(each["ended"] for each in progress.records)
    print(
        f"\n{len(points)} points, {fired} fired, {_wrong(progress.records)} wrong; they ended: {dict(ended)}"
    )
    return {
        "passed": fired == len(points) and not _wrong(progress.records),
        "points": len(points),
        "fired": fired,
        "by_call": {
            call: {fault: tried[call, fault] for fault in faults if tried[call, fault]} for call in calls
        },
        "ended": ended,
        "wrong": [each for each in progress.records if each["wrong"] or not each["fired"]],
    }


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="python -m tests.system", description=__doc__)
    parser.add_argument("form", choices=["power-cuts", "syscalls"])
    parser.add_argument("--work", type=Path, required=True, help="where disks and the progress file lie")
    parser.add_argument("--cuts", type=int, default=1000, help="of the power, both file systems together")
    parser.add_argument("--json", type=Path, help="write the summary here, too")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))  # unmounts first
    given.work.mkdir(parents=True, exist_ok=True)
    summary = {"power-cuts": cut_power, "syscalls": fail_calls}[given.form](given.work.absolute(), given.cuts)
    for each in summary["wrong"]:
        print(json.dumps(each))
    if given.json:
        given.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
