"""System calls that fail: EIO from fsync, ENOSPC from write, a kill at the n-th call; injected by strace.

A writer in a process of its own tells each batch once it is acknowledged. Whatever call fails, it may meet
only typed errors, its reads go on, and the store opens again with all that was acknowledged.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.crash.small import assert_holds, ids, open_store
from tests.system.disks import needs

pytestmark = [pytest.mark.system, needs("strace")]

ROOT = Path(__file__).parents[2]
BATCHES = 30
ROWS = 700

WRITER = f"""
import sys
from pathlib import Path
import kvmeta
from tests.crash.small import *

def tell(*words):
    print(*words, flush=True)

acknowledged = []
store = None
try:
    store = open_store(Path(sys.argv[1]), options=MANUAL)
    for n in range({BATCHES}):
        some = ids(n * {ROWS}, (n + 1) * {ROWS})
        if n % 7 == 3:
            store.dataset().load([(some, locations(some))])
        else:
            store.dataset().put(some, locations(some))
        acknowledged.append(n)
        tell("acknowledged", n)
        if n % 10 == 9:
            store.compact()
        elif n % 4 == 1:
            store.flush()
    store.close()
    tell("closed")
except kvmeta.KvmetaError as error:
    tell("typed", type(error).__name__, str(error))
    if store is not None and not store.engine._closed:
        for n in acknowledged:
            assert_holds(store, n * {ROWS}, (n + 1) * {ROWS})
        tell("reads go on")
"""

FAULTS = {
    "EIO from fsync": ("fsync,fdatasync", "error=EIO"),
    "ENOSPC from write": ("write,pwrite64", "error=ENOSPC"),
    "EIO from write": ("write,pwrite64", "error=EIO"),
    "ENOSPC from opening": ("openat", "error=ENOSPC"),
    "EMFILE from opening": ("openat", "error=EMFILE"),
    "ENOMEM from mapping": ("mmap", "error=ENOMEM"),
    "EIO from rename": ("rename,renameat2", "error=EIO"),
    "EIO from unlink": ("unlink,unlinkat", "error=EIO"),
    "a kill at fsync": ("fsync,fdatasync", "signal=KILL"),
    "a kill at write": ("write,pwrite64", "signal=KILL"),
    "a kill at rename": ("rename,renameat2", "signal=KILL"),
    "a kill at unlink": ("unlink,unlinkat", "signal=KILL"),
}


def write_with(path: Path, calls: str, fault: str, when: int) -> tuple[str, int, bool]:
    """Run the writer under strace; return its output, its status and whether the fault fired.

    Only calls on the store's files count (`-P`), so the interpreter's own do not.
    """
    trace = path.with_suffix(".trace")
    directories = [path, path / "log", path / "segments"]
    files = [path / name for name in ("KVMETA", "KVMETA.new", "MARK", "SEAL", "LOCK")]
    files += [path / "log" / f"{n:06d}.{kind}" for n in range(60) for kind in ("log", "sst", "dbtmp")]
    files += [path / "log" / f"MANIFEST-{n:06d}" for n in range(30)] + [path / "log" / "CURRENT"]
    files += [path / "segments" / f"{n:08d}.seg" for n in range(120)]
    only = [word for each in (*directories, *files) for word in ("-P", str(each))]
    inject = f"inject={calls}:{fault}:when={when}"
    command = ["strace", "-f", "-qq", "-o", str(trace), *only, "-e", f"trace={calls}", "-e", inject]
    done = subprocess.run(
        [*command, sys.executable, "-c", WRITER, str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = trace.read_text(errors="replace")
    fired = "(INJECTED)" in told or "killed by SIGKILL" in told
    return done.stdout + ("" if done.returncode in (0, -9, 137) else done.stderr), done.returncode, fired


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_call_raises_a_typed_error_and_loses_nothing_acknowledged(
    tmp_path: Path, name: str
) -> None:
    calls, fault = FAULTS[name]
    rng = np.random.default_rng(sum(name.encode()))
    fired = 0
    limit = 12 if "rename" in calls or "unlink" in calls else 90
    for number, when in enumerate([1, 2, 3, *rng.integers(4, limit, 5).tolist()]):
        path = tmp_path / f"store-{number}"
        output, status, fires = write_with(path, calls, fault, when)
        fired += fires
        what = f"{name} at the {when}-th call, status {status}:\n{output[-3000:]}"
        if "KILL" not in fault:
            assert status == 0, what
            assert "closed\n" in output or "typed" in output, what
        assert "Traceback" not in output, what
        if not (path / "KVMETA").exists():
            assert "acknowledged" not in output, what
        with open_store(path) as store:
            for n in [int(n) for n in re.findall(r"^acknowledged (\d+)$", output, re.M)]:
                assert_holds(store, n * ROWS, (n + 1) * ROWS)
            hit = store.dataset().lookup(ids(0, BATCHES * ROWS)).found.reshape(BATCHES, ROWS)
            assert (hit.all(axis=1) | ~hit.any(axis=1)).all(), f"half a batch: {what}"
            assert store.verify().ok, what
    assert fired >= 4, f"{name}: the fault fired only {fired} times"
