"""A read-only file system: reading works, writing raises ReadOnlyError, nothing is changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvmeta
from tests.crash.small import assert_holds, open_store, put
from tests.system.disks import needs, read_only, run, tmpfs

pytestmark = [pytest.mark.system, needs("mount", "umount")]

ROOT = Path(__file__).parents[2]


def make(path: Path, *, closed: bool) -> None:
    """Make a store with runs and a log; `closed` or as a kill leaves it."""
    store = open_store(path / "made")
    put(store, 0, 5000)
    store.compact()
    put(store, 5000, 5500)
    if closed:
        store.close()
    shutil.copytree(path / "made", path / "store")
    store.close()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_store_on_a_read_only_mount_can_be_read_and_not_written(tmp_path: Path, closed: bool) -> None:
    make(tmp_path, closed=closed)
    with read_only(tmp_path / "store", tmp_path / "mount") as mount:
        before = {path: path.stat().st_mtime_ns for path in mount.rglob("*")}
        for mode in ("a", "x"):
            with pytest.raises((kvmeta.ReadOnlyError, kvmeta.InputError), match="mount"):
                open_store(mount, mode)
        with open_store(mount, "r") as reader:
            assert_holds(reader, 0, 5500)
            reader.refresh()
            assert_holds(reader, 0, 5500)
            assert reader.verify().ok
            assert sum(len(page.ids) for page in reader.dataset().scan()) == 5500
            with pytest.raises(kvmeta.ReadOnlyError):
                put(reader, 0, 10)
        assert {path: path.stat().st_mtime_ns for path in mount.rglob("*")} == before
        with pytest.raises(kvmeta.ReadOnlyError, match="mount"):
            open_store(mount / "new")
    with open_store(tmp_path / "store") as store:
        assert_holds(store, 0, 5500)


def test_a_file_system_that_turns_read_only_stops_writes_and_not_reads(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "32m") as disk:
        store = open_store(disk / "store")
        put(store, 0, 3000)
        store.flush()
        store.close()
        run("mount", "-o", "remount,ro", str(disk))
        with pytest.raises(kvmeta.ReadOnlyError):
            open_store(disk / "store")
        with open_store(disk / "store", "r") as reader:
            assert_holds(reader, 0, 3000)
        run("mount", "-o", "remount,rw", str(disk))
        with open_store(disk / "store") as store:
            assert_holds(store, 0, 3000)


def as_nobody(code: str) -> str:
    """Run code in an interpreter that became the user nobody once all is imported; return what it printed."""
    head = """
import os, tempfile
from tests.crash.small import *
with tempfile.TemporaryDirectory() as warm:
    for mode in ("a", "r"):
        with open_store(Path(warm), mode) as store:
            if mode == "a":
                put(store, 0, 5000)
                store.compact()
            assert_holds(store, 0, 5000)
os.setuid(65534)
"""
    done = subprocess.run(
        [sys.executable, "-c", head + code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_directory_without_permission_raises_typed_errors(tmp_path: Path) -> None:
    make(tmp_path, closed=True)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    store, sealed_off = tmp_path / "store", tmp_path / "sealed-off"
    shutil.copytree(store, sealed_off / "store")
    sealed_off.chmod(0o700)
    code = """
for path, mode in {cases}:
    try:
        with kvmeta.open(path, mode) as store:
            assert_holds(store, 0, 5500)
            print("read", end=" ")
    except kvmeta.KvmetaError as error:
        print(type(error).__name__, end=" ")
"""
    hidden = sealed_off / "store"
    cases = [(str(path), mode) for path in (store, hidden) for mode in ("a", "r")] + [
        (str(tmp_path / "new"), "a")
    ]
    told = as_nobody(code.format(cases=cases)).split()
    assert told == ["ReadOnlyError", "read", "ReadOnlyError", "ReadOnlyError", "ReadOnlyError"]
