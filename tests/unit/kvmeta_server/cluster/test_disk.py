"""A node's small files: whole, typed errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmeta.errors import KvmetaError
from kvmeta_server.cluster.disk import FileDisk


@pytest.mark.parametrize(
    "work",
    [
        lambda disk: disk.read("hints/1"),
        lambda disk: disk.size("hints/1"),
        lambda disk: disk.names("hints"),
        lambda disk: disk.append("hints/1", b"x"),
        lambda disk: disk.replace("hints/1", b"x"),
        lambda disk: disk.truncate("hints/1", 0),
        lambda disk: disk.remove("hints/1"),
    ],
)
def test_a_device_that_does_not_answer_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[FileDisk], object]
) -> None:
    disk = FileDisk(tmp_path)
    disk.append("hints/1", b"row")

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("stat", "mkdir", "open", "truncate", "unlink"):
        monkeypatch.setattr(os, name, fails)
    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(KvmetaError, match="hints"):
        work(disk)


def test_files_can_be_replaced_appended_to_cut_and_removed(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    assert disk.read("MAP") is None
    assert disk.size("MAP") == 0
    assert disk.names("hints") == []
    disk.replace("MAP", b"one")
    disk.replace("MAP", b"other")
    disk.append("hints/1", b"abc")
    disk.append("hints/1", b"def")
    disk.truncate("hints/1", 4)
    assert (disk.read("MAP"), disk.read("hints/1", 1, 2), disk.size("hints/1")) == (b"other", b"bc", 4)
    assert disk.names("hints") == ["1"]
    disk.remove("hints/1")
    disk.remove("hints/1")
    assert disk.names("hints") == []
