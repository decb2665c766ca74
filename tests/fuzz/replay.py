"""Replay every target: its seeds, what broke it once, and seeded mutations of both. Needs no fuzzer.

    NUMBA_DISABLE_JIT=1 python -m tests.fuzz.replay [--target NAME …] [--times 10]

Prints a JSON object: target -> inputs tried and findings (name -> traceback and the input in base64).
"""

from __future__ import annotations

import argparse
import base64
import json
import random
from typing import Any

from tests.fuzz import checked_memory

_SEALED_SHARE = 0.7


def replayed(target: Any, mutations: int) -> dict[str, Any]:
    """Return what was tried with a target, and what was found."""
    from tests.fuzz.mutation import mutated
    from tests.fuzz.target import judge, past_findings

    rng = random.Random(target.name)
    corpus = target.seeds()
    seeds = len(corpus)
    corpus += past_findings(target)
    found: dict[str, Any] = {}
    tried = accepted = seeds_accepted = 0
    while tried < len(corpus) + mutations:
        if tried < len(corpus):
            data = corpus[tried]
        else:
            data = mutated(rng.choice(corpus), corpus, rng)
            if rng.random() < _SEALED_SHARE:
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
    parser.add_argument("--times", type=int, default=1, help="as many mutations as the suite tries, so often")
    arguments = parser.parse_args()
    checked_memory.install()
    from tests.fuzz.targets import TARGETS

    names = arguments.target or TARGETS
    print(json.dumps({n: replayed(TARGETS[n], TARGETS[n].replays * arguments.times) for n in names}))


if __name__ == "__main__":
    main()
