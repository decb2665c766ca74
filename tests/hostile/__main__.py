"""All attacks at full size, each on a server of its own: `make hostile`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.hostile.attacks import ATTACKS
from tests.hostile.siege import GROWN_MB_MAX, RECOVERY_S_MAX, Healthy, Outcome, besieged
from tests.serving import ServerProcess

_CALM_S = 3.0


def attacked(name: str, scale: float, seconds: float) -> Outcome:
    """Return what one attack did to a fresh server."""
    with (
        tempfile.TemporaryDirectory(prefix="kvmeta-hostile-") as folder,
        ServerProcess(Path(folder) / "s") as server,
    ):
        return besieged(name, server, Healthy(server.target), scale, _CALM_S, seconds)


def main() -> int:
    """Attack, print a table, and return 1 if a bound was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each attack")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the attacks' connections")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="only these")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    results: dict[str, Outcome] = {}
    broken = []
    for number, name in enumerate(names := arguments.attack or list(ATTACKS), start=1):
        print(f"{name}: {arguments.seconds:g} s, {number} of {len(names)}", file=sys.stderr, flush=True)
        found = results[name] = attacked(name, arguments.scale, arguments.seconds)
        if found.grown_mb > GROWN_MB_MAX or found.recovery_s > RECOVERY_S_MAX or found.calls == found.failed:
            broken.append(name)
    print(f"{'attack':<14}{'RSS +MB':>9}{'bound':>7}{'calls':>8}{'failed':>8}{'calls/s':>9}{'before':>8}"
          f"{'share':>7}{'slowest s':>11}{'recovery s':>12}{'its CPU s':>11}")  # fmt: skip
    for name, found in results.items():
        share = found.rate_during / found.rate_before
        print(f"{name:<14}{found.grown_mb:>9.0f}{GROWN_MB_MAX:>7}{found.calls:>8,}{found.failed:>8,}"
              f"{found.rate_during:>9.0f}{found.rate_before:>8.0f}{share:>7.0%}{found.slowest_s:>11.2f}"
              f"{found.recovery_s:>12.2f}{found.recovery_cpu_s:>11.2f}"
              f"{'  broken' if name in broken else ''}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(
            json.dumps({name: asdict(found) for name, found in results.items()}, indent=1)
        )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
