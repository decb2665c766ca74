"""Disks of a test: a small tmpfs, and a file system in a loop file whose power can be cut."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2
UNMOUNT_S, FREE_S = 30.0, 1.0
MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
"""The file systems that know the call, and how they are made."""
MOUNT = {"ext4": (), "xfs": ("-o", "nouuid")}


def needs(*tools: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test where we are not root or a tool is missing."""
    missing = [
        tool
        for tool in tools
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    why = "needs root" if os.geteuid() else f"needs {', '.join(missing)}"
    return pytest.mark.skipif(os.geteuid() != 0 or bool(missing), reason=why)


def run(*command: str) -> str:
    """Return what a command prints; its error output is the test's failure."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout.strip()


def unmount(where: Path, *, wait_s: float = 2.5, lazily: bool = True) -> None:
    """Unmount, waiting a little for a process that just died; lazily if it must be."""
    gc.collect()  # closed stores that only cycles hold, and their mappings
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if subprocess.run(["umount", str(where)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.02)
    run("umount", *(["--lazy"] if lazily else []), str(where))


@contextmanager
def tmpfs(where: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of `size` at `where`."""
    where.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "kvmeta-test", str(where))
    try:
        yield where
    finally:
        unmount(where)


@contextmanager
def read_only(what: Path, where: Path) -> Iterator[Path]:
    """Bind `what` to `where`, read-only."""
    where.mkdir()
    run("mount", "--bind", str(what), str(where))
    try:
        run("mount", "-o", "remount,bind,ro", str(where))
        yield where
    finally:
        unmount(where)


class LoopDisk:
    """A file system in a file. `cut_power` loses what was not synced; `mount` replays the journal.

    It keeps its loop device, for one that is let go goes later, and meanwhile answers EIO.
    """

    def __init__(self, directory: Path, size_mb: int, kind: str) -> None:
        self._kind = kind
        self._image = directory / "disk-0.img"
        self.path = directory / "disk"
        self.path.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(size_mb << 20)
        run(*MAKE[kind], str(self._image))
        self._copies = 0
        self._attach()
        self._mounted = False

    def _attach(self) -> None:
        self._device = run("losetup", "--find", "--show", str(self._image))

    def mount(self) -> None:
        """Mount it."""
        run("mount", *MOUNT[self._kind], self._device, str(self.path))
        self._mounted = True

    def cut_power(self) -> None:
        """From now on nothing reaches the disk any more, the journal included."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it, if it is mounted."""
        if self._mounted:
            unmount(self.path, wait_s=UNMOUNT_S, lazily=False)
            self._mounted = False
            if not self._is_free():
                self._go_on_with_a_copy()

    def _is_free(self) -> bool:
        deadline = time.monotonic() + FREE_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                os.close(os.open(self._device, os.O_RDONLY | os.O_EXCL))
                return True
            time.sleep(0.02)
        return False

    def _go_on_with_a_copy(self) -> None:
        """Leave the file system to a mount namespace that was made meanwhile and has a copy of the mount.

        As long as it lives the file system does, shut down, and would be what is mounted again. The file has
        what reached the disk.
        """
        run("losetup", "--detach", self._device)
        self._copies += 1
        old, self._image = self._image, self._image.with_name(f"disk-{self._copies}.img")
        run("cp", "--sparse=always", str(old), str(self._image))
        old.unlink()
        self._attach()

    def detach(self) -> None:
        """Unmount it and let its device go."""
        try:
            self.unmount()
        finally:
            run("losetup", "--detach", self._device)


@contextmanager
def loop_disk(directory: Path, kind: str = "ext4", size_mb: int = 320) -> Iterator[LoopDisk]:
    """Make and mount a loop disk (xfs wants 300 MB); leave nothing mounted."""
    disk = LoopDisk(directory, size_mb, kind)
    try:
        disk.mount()
        yield disk
    finally:
        disk.detach()
