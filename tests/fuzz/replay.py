"""Replay every target: its seeds, what broke it once, and seeded mutations of both. Needs no fuzzer.

    NUMBA_DISABLE_JIT=1 python -m tests.fuzz.replay --seconds 2 [--target NAME …]

Prints a JSON object: target -> inputs tried and findings (name -> traceback and the input in base64).
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import time
from typing import Any

from tests.fuzz import checked_memory


def replayed(target: Any, mutations: int, seconds: float) -> dict[str, Any]:
    """Return what was tried with a target, at most so many mutations in about so many seconds, and found."""
    from tests.fuzz.mutation import mutated
    from tests.fuzz.target import judge, past_findings

    rng = random.Random(target.name)
    corpus = target.seeds()
    seeds = len(corpus)
    corpus += past_findings(target)
    found: dict[str, Any] = {}
    tried = accepted = seeds_accepted = 0
    end = time.monotonic() + seconds
    inputs = iter(corpus)
    while tried < len(corpus) + mutations and (tried < len(corpus) or time.monotonic() < end):
        data = next(inputs, None)
        if data is None:
            data = mutated(rng.choice(corpus), corpus, rng)
            if rng.random() < 0.7:
                data = target.seal(data)
        verdict = judge(target, data)
        finding = verdict.finding
        accepted += verdict.accepted
        seeds_accepted += verdict.accepted and tried < seeds
        tried += 1
        if finding is not None and finding.what not in found:
            found[finding.what] = {"told": finding.told, "input": base64.b64encode(data).decode()}
    shares = {"seeds": seeds, "seeds_accepted": seeds_accepted, "accepted": accepted}
    return {"inputs": tried, **shares, "findings": found}


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", help="only these")
    parser.add_argument("--mutations", type=int, default=4000, help="of each target, at most")
    parser.add_argument("--seconds", type=float, default=2.5, help="for each target, about")
    arguments = parser.parse_args()
    checked_memory.install()
    from tests.fuzz.targets import TARGETS

    names = arguments.target or TARGETS
    print(json.dumps({n: replayed(TARGETS[n], arguments.mutations, arguments.seconds) for n in names}))


if __name__ == "__main__":
    main()
