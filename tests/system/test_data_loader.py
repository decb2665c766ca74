"""PyTorch's DataLoader over kvmeta: over a server and over a directory, with each way to start workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kvmeta
from tests.interpreters import ROOT, ends_well
from tests.serving import ServerProcess

PYTHON = ROOT / ".venv-torch" / "bin" / "python"
PROGRAM = ROOT / "tests" / "system" / "loader_program.py"
COUNT = 1500
WAIT_S = 240.0

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs PyTorch in .venv-torch: make torch-venv"),
]


def content(number: int) -> bytes:
    """Return the bytes of a file, as loader_program.py expects them."""
    return f"file {number} ".encode() * (1 + number % 50)


def fill(store: kvmeta.Store, volume: Path) -> None:
    """Write COUNT files one after the other into `volume` and put where they lie."""
    files = [content(number) for number in range(COUNT)]
    volume.write_bytes(b"".join(files))
    locations = np.zeros(COUNT, kvmeta.LOCATION)
    locations["volume"] = store.volumes.add(volume)
    locations["length"] = [len(file) for file in files]
    locations["offset"] = np.cumsum(locations["length"]) - locations["length"]
    store.dataset().put(np.arange(COUNT, dtype=np.uint64), locations)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    with ServerProcess(tmp_path / "store") as server:
        with kvmeta.open(server.target) as store:
            fill(store, tmp_path / "files")
        yield server.target


def trains(target: str, mode: str, context: str) -> None:
    told = ends_well([PYTHON, PROGRAM, target, mode, context, str(COUNT)], WAIT_S)
    assert "every epoch was right" in told


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("mode", ["r", "a"])
def test_workers_read_every_file_correctly_once_through_a_server(
    target: str, mode: str, context: str
) -> None:
    trains(target, mode, context)


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_read_every_file_correctly_once_from_a_directory(tmp_path: Path, context: str) -> None:
    with kvmeta.open(tmp_path / "store") as store:
        fill(store, tmp_path / "files")
    trains(str(tmp_path / "store"), "r", context)
