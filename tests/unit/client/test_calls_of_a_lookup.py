"""How much Python a lookup costs its caller: a batch stays columns, whatever it travels through."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import kvmeta
from kvmeta.client.routing import Route
from kvmeta.embedded import EmbeddedStore
from kvmeta.remote import RemoteStore
from tests.serving import served

CALLS_MAX = 120
IDS = kvmeta.ids_from_ints(np.arange(256, dtype=np.uint64))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RemoteStore]:
    with EmbeddedStore(tmp_path / "store") as local:
        local.dataset().put(IDS, np.zeros(256, kvmeta.LOCATION))
        with served(local) as target, RemoteStore(target) as remote:
            yield remote


def calls_of_a_lookup(store: RemoteStore) -> Counter[str]:
    """Return the Python functions that a lookup calls in the caller's thread, gRPC's among them."""
    dataset = store.dataset()
    dataset.lookup(IDS)  # what is made once is there
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        hits = dataset.lookup(IDS)
    finally:
        sys.setprofile(None)
    assert hits.found.all()
    return calls


def test_a_lookup_at_a_server_takes_few_python_calls(store: RemoteStore) -> None:
    calls = calls_of_a_lookup(store)
    assert calls.total() <= CALLS_MAX, calls.most_common(40)


def test_a_lookup_in_a_cluster_takes_few_python_calls(store: RemoteStore) -> None:
    router = store.connection.router
    owners = np.zeros((4096, 3), np.uint16)
    router.routes, router.route = True, Route(1, owners, {0: router.seeds[0]}, frozenset())
    router.saw(1)
    calls = calls_of_a_lookup(store)
    assert calls.total() <= CALLS_MAX, calls.most_common(40)
