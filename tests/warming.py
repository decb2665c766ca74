"""Compile the kernels before tests need them: once, and not in each of the processes that share the tests.

`python -m tests.warming` does it, and says so where one has to be compiled.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from kvmeta import compiling

ROOT = Path(__file__).parents[1]


def warm_apart() -> None:
    """Warm in a process of its own: a test process shall open its first store itself."""
    subprocess.run([sys.executable, "-m", "tests.warming"], cwd=ROOT, check=True)


def main() -> None:
    """Let small stores do everything once."""
    compiling.tell_by(lambda words: print(words, file=sys.stderr, flush=True))  # noqa: T201 - a program
    import kvmeta
    import tests.crash.warm  # noqa: F401 - it warms when it is imported
    from kvmeta.sources import index, pack
    from kvmeta_server.warming import warm

    warm()
    with tempfile.TemporaryDirectory(prefix="kvmeta-warm-") as directory:
        source, shards = Path(directory) / "source", Path(directory) / "shards"
        source.mkdir()
        (source / "file").write_bytes(bytes(5000))
        pack(source, shards)
        with kvmeta.open(Path(directory) / "store") as store:
            index(store.dataset(), store.volumes, [shards])
            store.dataset().read(kvmeta.ids_from_keys(["source/file"]))


if __name__ == "__main__":
    main()
