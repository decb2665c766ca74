"""Simulate many seeds: `python -m kvmeta_server.simulator --seeds 1000`. A failed seed prints its replay."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from kvmeta_server.simulator.faults import Mix
from kvmeta_server.simulator.simulation import OWN_MIX, Result, simulate


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; return the exit status."""
    options = _parser().parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names shall be walked in one order everywhere
        command = [
            sys.executable,
            "-m",
            "kvmeta_server.simulator",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})
    if options.seed is not None:
        return _one(options.seed, options)
    return _many(options)


def _one(seed: int, options: argparse.Namespace) -> int:
    result = simulate(seed, _mix(options), keep_events=True)
    print("\n".join(result.events))
    print(f"seed {seed}: {result.violation or 'nothing was violated'}; trace {result.trace:016x}")
    return 1 if result.violation else 0


def _many(options: argparse.Namespace) -> int:
    done = _read(options.record)
    seeds = [seed for seed in range(options.first, options.first + options.seeds) if seed not in done]
    started, failed = time.monotonic(), 0
    totals: Counter[str] = Counter()
    record = open(options.record, "a") if options.record else None  # noqa: SIM115 - closed below
    for number, result in enumerate(_results(seeds, options), 1):
        totals["faults"] += sum(result.faults.values())
        totals["acknowledged"] += result.acknowledged
        totals["read"] += result.read
        if result.violation:
            failed += 1
            print(f"seed {result.seed}: {result.violation}\n  replay: {_replay(result.seed, options)}")
        if record is not None:
            line = {"seed": result.seed, "trace": f"{result.trace:016x}", "violation": result.violation}
            record.write(json.dumps(line) + "\n")
            record.flush()
        if number % 50 == 0 or number == len(seeds):
            rate = number / (time.monotonic() - started) / options.jobs
            print(
                f"{number:,} of {len(seeds):,} seeds, {failed} failed, {rate:.1f} a second and core",
                flush=True,
            )
    if record is not None:
        record.close()
    seconds = time.monotonic() - started
    before = sum(bool(violation) for violation in done.values())
    summary = {
        "seeds": len(seeds), "failed": failed, "seconds": round(seconds, 1), **totals,
        "recorded before": len(done), "failed before": before,
    }  # fmt: skip
    print(json.dumps(summary) if options.json else ", ".join(f"{k} {v:,}" for k, v in summary.items()))
    return 1 if failed or before else 0


def _results(seeds: list[int], options: argparse.Namespace) -> Iterator[Result]:
    work = partial(simulate, mix=_mix(options))
    if options.jobs == 1:
        yield from map(work, seeds)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context) as pool:
            yield from pool.map(work, seeds, chunksize=4)


def _read(record: Path | None) -> dict[int, str]:
    """Return the seeds in a record and what they violated."""
    if record is None or not record.exists():
        return {}
    lines = [json.loads(line) for line in record.read_text().splitlines() if line.endswith("}")]
    return {line["seed"]: line["violation"] for line in lines}


def _replay(seed: int, options: argparse.Namespace) -> str:
    mix = f" --faults {options.faults}" if options.faults != OWN_MIX.faults else ""
    mix += f" --kinds {shlex.quote(','.join(options.kinds))}" if options.kinds else ""
    mix += f" --pause {options.pause}" if options.pause is not None else ""
    return f"python -m kvmeta_server.simulator --seed {seed}{mix}"


def _mix(options: argparse.Namespace) -> Mix:
    return Mix(options.faults, tuple(options.kinds), options.pause)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m kvmeta_server.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default: 1000)")
    parser.add_argument("--first", type=int, default=1, help="the first of them (default: 1)")
    parser.add_argument("--seed", type=int, help="replay one seed and print all that happened")
    parser.add_argument(
        "--faults", type=int, default=OWN_MIX.faults, help=f"faults a seed (default: {OWN_MIX.faults})"
    )
    parser.add_argument("--pause", type=float, help="seconds between two faults (default: a seed's choice)")
    parser.add_argument(
        "--kinds", type=lambda names: names.split(","), default=(),
        help="make only such faults, by names with commas between (default: a mix of each seed's own)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: the cores)"
    )
    parser.add_argument(
        "--record", type=Path, help="a file of results: seeds that are in it are not run again"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
