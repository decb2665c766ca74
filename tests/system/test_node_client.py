"""A Node.js client, written from docs/protocol.md alone: it writes and sees what the Python SDK does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvmeta
import kvmeta.operators
from kvmeta_server.dev import DevCluster
from tests.serving import ServerProcess

ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests" / "node"
ROWS = 1000
MISSING = [tool for tool in ("node", "npm") if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (Debian: nodejs npm)"),
]


def run(command: list[str], where: Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr}"
    return done.stdout


def file_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def location_of(row: int) -> tuple[int, ...]:
    return (1, row + 1, (1 << 40) + row * 4096, row * 2654435761 % 2**32, row % 10)


def as_tuple(location: dict[str, Any]) -> tuple[int, ...]:
    """Return a location of the client's, whose offset is text: it may exceed a JavaScript number."""
    return tuple(int(location[name]) for name in ("volume", "length", "offset", "checksum", "tag"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the installed client, in a directory of its own."""
    where = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(NODE / name, where)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], where)
    return where / "client.mjs"


@pytest.fixture(params=["a server", "a node of a cluster"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "a server":
        with ServerProcess(tmp_path / "store") as server:
            yield server.target
        return
    with DevCluster(tmp_path, settings=["cluster.partitions=32"]) as cluster:
        with kvmeta.operators.open(cluster.target) as operator:
            while len(operator.status().members) < 3 or operator.status().moving:
                time.sleep(0.05)
        yield f"kvmeta://{cluster.nodes['n2'].address}"


def test_a_node_js_client_and_python_see_the_same_entries(client: Path, target: str) -> None:
    address = target.removeprefix("kvmeta://")
    seen = json.loads(run(["node", str(client), address, os.fspath(ROOT / "protos")], client.parent))
    with kvmeta.open(target) as store:
        check_what_it_wrote(store)
        check_what_it_saw(seen, store)
    check_how_it_failed(seen["failures"])


def check_what_it_wrote(store: kvmeta.Store) -> None:
    ds = store.dataset()
    ids = [file_id(f"node/{row}") for row in range(ROWS)]
    hits = ds.lookup(ids)
    assert hits.found.all()
    expected = [location_of(row) for row in range(ROWS)]
    expected[0] = location_of(9)  # relocated
    assert hits.locations.tolist() == expected
    assert [kvmeta.split_version(version).moves for version in hits.versions[:2]] == [1, 0]
    assert ds.get(file_id("node/absent")) is None
    assert ds.get("train/0001.jpg") == (*location_of(5)[:2], 1099511648256, *location_of(5)[3:])
    assert ds.get("gone") is None
    volume = store.volumes.get("file:///data/node.tar")
    assert (volume.number, volume.size_bytes) == (1, 9007199254740993)


def check_what_it_saw(seen: dict[str, Any], store: kvmeta.Store) -> None:
    ds = store.dataset()
    assert seen["describe"]["version"] == kvmeta.__version__
    assert seen["describe"]["batch_rows_max"] == 65_536

    lookup = seen["lookup"]
    assert lookup["states"] == [1] * ROWS + [0]
    assert [as_tuple(each) for each in lookup["locations"][:ROWS]] == [
        location_of(row) for row in range(ROWS)
    ]
    assert as_tuple(lookup["locations"][ROWS]) == (0, 0, 0, 0, 0)
    (version,) = set(lookup["versions"][:ROWS])  # one batch has one version
    assert lookup["versions"][ROWS] == "0"
    assert int(version) == int(ds.lookup([file_id("node/1")]).versions[0])

    insert = seen["insert"]
    assert insert["outcomes"] == [6, 0]
    assert [as_tuple(each) for each in insert["locations"]] == [location_of(0), location_of(8)]
    assert insert["versions"][0] == version
    assert int(insert["versions"][1]) > int(version)
    assert seen["relocate"]["outcomes"] == [kvmeta.Outcome.RELOCATED, kvmeta.Outcome.CHANGED]

    pages = list(ds.scan())
    key_id = kvmeta.ids_to_hex(kvmeta.ids_from_keys(["train/0001.jpg"]))[0]
    everything = [each for page in pages for each in kvmeta.ids_to_hex(page.ids)]
    everything.remove(key_id)  # it came after the client's scan
    scan = seen["scan"]
    assert scan["pages"] >= 4
    assert scan["ids"] == everything
    held = ds.lookup(kvmeta.ids_from_hex(scan["ids"]))
    assert [as_tuple(each) for each in scan["locations"]] == held.locations.tolist()
    assert [int(each) for each in scan["versions"]] == held.versions.tolist()
    assert set(seen["tagged"]["ids"]) == {
        each for each, loc in zip(scan["ids"], held.locations, strict=True) if loc["tag"] == 3
    }
    assert all(seen["shards"])
    assert [each for shard in seen["shards"] for each in shard] == everything

    assert seen["get"] == seen["get_by_id"]
    assert as_tuple(seen["get"]["location"]) == ds.get("train/0001.jpg")
    assert int(seen["get"]["version"]) == int(ds.lookup(["train/0001.jpg"]).versions[0])
    assert "location" not in seen["gone"]
    assert seen["gone"]["version"] == "0"
    assert seen["volume"]["number"] == 1
    assert seen["volume"]["size_bytes"] == "9007199254740993"
    assert seen["job"]["state"] == "JOB_STATE_DONE"
    assert seen["job"]["report"]["damages_total"] == "0"


def check_how_it_failed(failures: dict[str, Any]) -> None:
    told = {
        name: (each["status"], each["info"] and (each["info"]["domain"], each["info"]["reason"]))
        for name, each in failures.items()
    }
    assert told == {
        "dataset": ("NOT_FOUND", ("kvmeta", "NOT_FOUND")),
        "column": ("INVALID_ARGUMENT", ("kvmeta", "INPUT")),
        "operation": ("INVALID_ARGUMENT", ("kvmeta", "INPUT")),
        "rows": ("INVALID_ARGUMENT", ("kvmeta", "INPUT")),
        "message": ("RESOURCE_EXHAUSTED", None),
    }
    assert "nowhere" in failures["dataset"]["message"]
    assert "split the batch" in failures["rows"]["message"]
