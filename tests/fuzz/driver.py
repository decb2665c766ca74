"""Fuzz one target with atheris until the time is up: `python -m tests.fuzz.driver TARGET SECONDS DIR`.

Started by `tests.fuzz`. DIR/corpus grows; DIR/findings gets an input, and what it brought about, for each
fault. What ends the process, a crash or a hang outside Python, libFuzzer leaves as DIR/crash-… or timeout-….
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import atheris

from tests.fuzz import checked_memory

_TIMEOUT_S, _RSS_MB, _INPUT_BYTES_MAX = 20, 2048, 1 << 16
_SEALED_SHARE = 0.7


def main() -> None:
    """Fuzz."""
    name, seconds, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with atheris.instrument_imports(include=["kvmeta", "kvmeta_server"]):
        checked_memory.install()
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.target import judge, past_findings

    target = TARGETS[name]
    corpus, findings = folder / "corpus", folder / "findings"
    for each in (corpus, findings):
        each.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate([*target.seeds(), *past_findings(target)]):
        (corpus / f"seed-{number}").write_bytes(seed)

    def once(data: bytes) -> None:
        finding = judge(target, data).finding
        if finding is not None:
            file = findings / re.sub(r"\W+", "-", finding.what)
            if not file.exists():
                file.write_bytes(data)
                file.with_suffix(".txt").write_text(finding.told)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        mutated: bytes = atheris.Mutate(data, most)
        if random.Random(seed).random() < _SEALED_SHARE:
            mutated = target.seal(mutated)
        return mutated[:most]

    options = [
        f"-max_total_time={seconds}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_RSS_MB}",
        f"-max_len={_INPUT_BYTES_MAX}", f"-artifact_prefix={folder}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
