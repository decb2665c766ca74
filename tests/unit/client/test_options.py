"""What a target names, and what options are taken."""

from __future__ import annotations

from typing import Any

import pytest

import kvmeta
from kvmeta.client.options import ClientOptions, address_of


def test_waiting_for_a_job_fits_within_a_calls_deadline() -> None:
    assert [kvmeta.ClientOptions(timeout_s=each).job_wait_s for each in (1, 2, 30)] == [0.5, 1, 2]


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("kvmeta://localhost", "localhost:7400"),
        ("kvmeta://localhost:1234", "localhost:1234"),
        ("kvmeta://10.0.0.1:7400/", "10.0.0.1:7400"),
        ("kvmeta://[::1]", "[::1]:7400"),
        ("kvmeta://[fe80::1]:99", "[fe80::1]:99"),
    ],
)
def test_an_address_is_read_from_its_target(target: str, address: str) -> None:
    assert address_of(target) == address


@pytest.mark.parametrize(
    "target",
    ["kvmeta://", "kvmeta://:7400", "kvmeta://h:x", "kvmeta://h:99999", "kvmeta://u@h", "kvmeta://h/path", "http://h",
     "kvmeta://h?x=1", "kvmeta://[::1"],
)  # fmt: skip
def test_a_target_that_names_no_server_is_refused(target: str) -> None:
    with pytest.raises(kvmeta.InputError, match="expected"):
        address_of(target)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout_s": 0}, {"timeout_s": "1"}, {"connect_timeout_s": float("inf")}, {"in_flight": 0},
     {"lookup_rows": 1.5}, {"compression": "gzip"}],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(kvmeta.InputError, match=next(iter(wrong))):
        ClientOptions(**wrong)
