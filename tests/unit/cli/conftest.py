import os

import pytest
from click.testing import CliRunner

import kvmeta
from kvmeta.cli.main import kvmeta_command
from kvmeta.sources import index, pack
from tests.unit.cli.standin import Opener


@pytest.fixture
def opener(monkeypatch):
    """`kvmeta.open`, replaced by one that keeps stores in memory."""
    standin = Opener()
    monkeypatch.setattr(kvmeta, "open", standin, raising=False)
    monkeypatch.delenv("KVMETA_STORE", raising=False)
    monkeypatch.delenv("KVMETA_DEBUG", raising=False)
    return standin


@pytest.fixture
def run(opener):
    """Run one command line; the result has .exit_code, .stdout, .stderr."""

    def call(*words, **named):
        return CliRunner().invoke(kvmeta_command, [str(word) for word in words], **named)

    return call


@pytest.fixture
def photos(tmp_path):
    """Twenty small files below `photos/`, by the names they get in a shard."""
    contents = {f"photos/d{i % 2}/{i}.bin": os.urandom(100 + i) for i in range(20)}
    for name, content in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return contents


@pytest.fixture
def catalog(opener, tmp_path, photos):
    """Index the photos, half of them with tag 7, and return the path of the store."""
    store = opener("catalog", mode="a")
    for i in range(2):
        pack(tmp_path / "photos" / f"d{i}", tmp_path / f"shards{i}")
        index(store.dataset("default"), store.volumes, tmp_path / f"shards{i}", tag=7 * i)
    opener.modes.clear()
    return "catalog"
