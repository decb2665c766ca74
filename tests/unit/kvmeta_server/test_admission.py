"""What a server takes on at once."""

from __future__ import annotations

import pytest

from kvmeta_server.admission import Admission
from kvmeta_server.config import Limits
from kvmeta_server.refusal import Refused

LIMITS = Limits(calls_max=8, bytes_in_flight_max=800)


def test_released_calls_make_room_for_new_ones() -> None:
    admission = Admission(LIMITS)
    for i in range(8):
        admission.admit(f"peer {i}", 10)
    with pytest.raises(Refused, match="8 calls are in flight, of at most 8") as refused:
        admission.admit("another", 10)
    assert refused.value.reason == "OVERLOADED"
    admission.hold("peer 0", 50)
    admission.release("peer 0", 60)
    admission.admit("another", 10)
    assert (admission.calls, admission.bytes) == (8, 80)


def test_one_connection_may_use_a_quarter_of_the_room() -> None:
    admission = Admission(LIMITS)
    admission.admit("greedy", 10)
    admission.admit("greedy", 10)
    with pytest.raises(Refused, match="this connection has 2 calls in flight, of at most 2"):
        admission.admit("greedy", 10)
    admission.admit("modest", 10)


def test_unsent_answers_count_against_the_limits() -> None:
    admission = Admission(LIMITS)
    admission.admit("slow", 10)
    admission.hold("slow", 200)
    with pytest.raises(Refused, match="this connection has 210 bytes in flight"):
        admission.admit("slow", 10)
    admission.admit("quick", 10)
    admission.hold("quick", 600)
    with pytest.raises(Refused, match="820 bytes are in flight"):
        admission.admit("other", 10)


def test_read_answers_are_refused_when_too_many_bytes_wait() -> None:
    admission = Admission(LIMITS)
    admission.admit("greedy", 10)
    admission.hold("greedy", 500, may_refuse=True)  # one answer may be large
    with pytest.raises(Refused, match="510 bytes wait to leave"):
        admission.hold("greedy", 1, may_refuse=True)
    admission.hold("greedy", 2_000)  # what was done is told
    with pytest.raises(Refused, match="2510 bytes wait"):
        admission.hold("modest", 1, may_refuse=True)
    assert admission.bytes == 2_510


def test_a_draining_server_refuses_all() -> None:
    admission = Admission(LIMITS)
    admission.drain()
    with pytest.raises(Refused) as refused:
        admission.admit("peer", 1)
    assert refused.value.reason == "DRAINING"


def test_a_released_peer_leaves_nothing_behind() -> None:
    admission = Admission(LIMITS)
    admission.admit("peer", 10)
    admission.release("peer", 10)
    assert (admission.calls, admission.bytes, admission._calls, admission._bytes) == (0, 0, {}, {})
