"""Stores of format 1, frozen the day it shipped, answer as they did."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import kvmeta

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURES / "format-v1.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_frozen_store_of_format_1_answers_as_it_did(frozen: Path, mode: str) -> None:
    expected = json.loads((FIXTURES / "format-v1.json").read_text())
    ids = kvmeta.ids_from_ints(np.arange(1200, dtype=np.uint64))
    with kvmeta.open(frozen, mode) as store:
        ds = store.dataset()
        hit = ds.lookup(ids)
        assert hit.found.astype(int).tolist() == expected["found"]
        assert [list(each) for each in hit.locations.tolist()] == expected["locations"]
        assert hit.versions.tolist() == expected["versions"]
        assert [kvmeta.ids_to_hex(page.ids) for page in ds.scan(page_rows=100)] == expected["scan"]
        century = store.dataset("century").lookup(["a key", "another", "absent"])
        assert [list(each) for each in century.locations.tolist()] == expected["century"]
        volumes = [[int(v), v.uri, v.name, v.size_bytes, v.state, v.codec] for v in store.volumes.list()]
        assert volumes == expected["volumes"]
        assert store.verify().ok


def test_a_frozen_store_of_format_1_accepts_new_writes(frozen: Path) -> None:
    ids = kvmeta.ids_from_ints(np.arange(1200, dtype=np.uint64))
    with kvmeta.open(frozen) as store:
        before = store.dataset().lookup(ids)
        assert (
            store.dataset().insert(ids, np.zeros(1200, kvmeta.LOCATION)).inserted.sum()
            == (~before.found).sum()
        )
        store.compact()
    with kvmeta.open(frozen, "r") as store:
        after = store.dataset().lookup(ids)
        assert after.found.all()
        assert (after.locations[before.found] == before.locations[before.found]).all()
        assert (after.versions[~before.found] > before.versions.max()).all()


def test_a_store_of_a_newer_format_is_refused(frozen: Path) -> None:
    identity = frozen / "KVMETA"
    identity.write_text(identity.read_text().replace('"format": 1', '"format": 2'))
    for mode in ("r", "a"):
        with pytest.raises(kvmeta.FormatError, match="format 2"):
            kvmeta.open(frozen, mode)
