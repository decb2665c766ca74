"""Warming: every kernel is loaded, and if need be compiled, before a server says that it is ready.

A kernel's first call takes 8 to 20 ms where it is cached and seconds where it is not. So a small store of its
own goes through everything that a client may ask for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.engine.commit import APPLY, Write
from kvmeta.engine.kernels.layout import HIGH, ROW_WORDS
from kvmeta.engine.options import EngineOptions

_ROWS = 4096


def warm() -> None:
    """Load the kernels."""
    options = EngineOptions(batch_rows_max=1024, memtable_rows_max=1024, fan_out=2, merge_step_rows=512)
    ids = kvmeta.ids_from_ints(np.arange(_ROWS, dtype=np.uint64))
    locations = np.zeros(_ROWS, kvmeta.LOCATION)
    with (
        tempfile.TemporaryDirectory(prefix="kvmeta-warm-") as directory,
        EmbeddedStore(Path(directory) / "store", "x", options) as store,
    ):
        dataset = store.create_dataset("warm", ttl_s=3600.0, bottom_filter=True)
        dataset.put(ids, locations)
        dataset.put(np.concatenate([ids[:8], ids[:8]]), np.zeros(16, kvmeta.LOCATION))
        dataset.insert(ids[:8], locations[:8])
        dataset.delete(ids[:4])
        dataset.relocate(ids[8:16], locations[:8], dataset.lookup(ids[8:16]).versions)
        rows = np.ones((8, ROW_WORDS), np.uint64)
        rows[:, HIGH] = np.arange(8)
        store.engine.commit(Write(store.engine.tree("warm"), APPLY, rows))
        store.flush()
        dataset.lookup(ids)
        for _ in dataset.scan(page_rows=512, tag=0):
            pass
        store.compact()
        store.verify()
        dataset.lookup(ids)
