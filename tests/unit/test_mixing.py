from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmeta import mixing
from kvmeta.engine.kernels import hashing
from kvmeta.ids import as_ids, ids_from_hex, ids_from_ints
from kvmeta.mixing import DEFAULT_SEED, mix, round_keys, unmix

ids_lists = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=50)

# Published in docs/format.md; a change of any breaks every store there is.
VECTORS = {
    "00000000000000000000000000000000": "86016047631bb7facaf87050177facc8",
    "00000000000000000000000000000001": "e83309571cd2f86c7673c6b0a7c32d7f",
    "0123456789abcdeffedcba9876543210": "8e641ea83f8bd43f767becc697f09f4a",
    "ffffffffffffffffffffffffffffffff": "13e3365231b894a3428819bc147a1cc0",
}


def test_the_published_vectors_hold() -> None:
    for plain, mixed in VECTORS.items():
        high, low = mix(ids_from_hex(plain))[0]
        assert f"{int(high):016x}{int(low):016x}" == mixed


@given(ids_lists, st.integers(0, 2**64 - 1))
def test_unmix_inverts_mix(raw: list[bytes], seed: int) -> None:
    ids = as_ids(raw)
    assert unmix(mix(ids, seed), seed).tobytes() == ids.tobytes()


@given(ids_lists, st.integers(0, 2**64 - 1))
def test_the_kernels_do_what_the_reference_does(raw: list[bytes], seed: int) -> None:
    ids = as_ids(raw)
    words = ids.view(np.uint64).reshape(-1, 2)
    mixed, back = np.empty_like(words), np.empty_like(words)
    hashing.mix(words, round_keys(seed), mixed)
    assert (mixed == mix(ids, seed)).all()
    hashing.unmix(mixed, round_keys(seed), back)
    assert (back == words).all()


def test_sequential_ids_spread_evenly() -> None:
    mixed = mix(ids_from_ints(np.arange(100_000, dtype=np.uint64)))
    for half in range(2):
        counts = np.bincount((mixed[:, half] >> np.uint64(58)).astype(int), minlength=64)
        assert abs(counts - 100_000 / 64).max() < 6 * np.sqrt(100_000 / 64)


def test_the_default_seed_is_the_published_one() -> None:
    assert DEFAULT_SEED.to_bytes(8, "big") == b"kvmeta\0\x01"


@pytest.mark.parametrize("n", [0, 1, 8191, 8192, 20_000])
def test_mixing_only_high_halves_gives_the_same_high_halves(n: int) -> None:
    ids = np.random.default_rng(n).integers(0, 256, (n, 16), np.uint8).view("V16").reshape(-1)
    for seed in (mixing.DEFAULT_SEED, 7):
        assert (mixing.mixed_high(ids, seed) == mixing.mix(ids, seed)[:, 0]).all()
