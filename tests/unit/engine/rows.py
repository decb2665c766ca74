"""Rows for tests of the engine's parts."""

from __future__ import annotations

import numpy as np

from kvmeta.engine.kernels.layout import ROW_WORDS


def random_rows(n: int, seed: int = 0, version: int = 1 << 23) -> np.ndarray:
    """Return n rows u8[n, 6] with random IDs, unsorted, all of one version."""
    rng = np.random.default_rng(seed)
    rows = np.empty((n, ROW_WORDS), np.uint64)
    rows[:, :2] = rng.integers(0, 2**64, (n, 2), np.uint64)
    rows[:, 2] = version
    rows[:, 3] = rng.integers(1, 4, n).astype(np.uint64) | rng.integers(0, 1 << 20, n).astype(
        np.uint64
    ) << np.uint64(32)
    rows[:, 4] = rng.integers(0, 1 << 20, n).astype(np.uint64) * np.uint64(512)
    rows[:, 5] = rng.integers(0, 1 << 32, n).astype(np.uint64)
    return rows


def by_id(rows: np.ndarray) -> np.ndarray:
    """Return rows sorted by mixed ID, stable."""
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]
