"""The load scripts for k6 and locust run against a real server, look up, put, and leave nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvmeta
from tests.serving import ServerProcess

LOAD = Path(__file__).parents[2] / "bench" / "load"
BESIDE_PYTHON = str(Path(sys.executable).parent)


def tool(name: str) -> str | None:
    return shutil.which(name, path=BESIDE_PYTHON) or shutil.which(name)


def run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=LOAD.parents[1], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def server(tmp_path):
    with ServerProcess(tmp_path / "store") as process:
        yield process
        with kvmeta.open(process.target) as store:
            assert store.datasets() == ["default"]


@pytest.mark.system
@pytest.mark.skipif(tool("k6") is None, reason="needs k6 (make bench-peers-install)")
def test_the_k6_script_finds_every_id(server):
    address = server.target.removeprefix("kvmeta://")
    words = ["-e", f"TARGET={address}", "-e", "BATCH=256", "-e", "PUTS=0.2", "--vus", "2", "--duration", "2s"]

    told = run(tool("k6"), "run", *words, str(LOAD / "k6.js"))

    assert "checks_failed......................: 0.00%" in told
    assert "kvmeta_ids_looked_up" in told
    assert "kvmeta_entries_put" in told


@pytest.mark.system
@pytest.mark.skipif(tool("locust") is None, reason="needs locust (make bench-peers-install)")
def test_the_locust_file_makes_no_failures(server):
    address = server.target.removeprefix("kvmeta://")
    words = [
        "--headless",
        "-u",
        "2",
        "-r",
        "2",
        "-t",
        "3s",
        "--host",
        address,
        "--batch",
        "256",
        "--puts",
        "0.2",
    ]

    told = run(tool("locust"), "-f", str(LOAD / "locustfile.py"), *words, "--only-summary")

    assert "0(0.00%)" in told
    assert "Lookup" in told
    assert "Write" in told
