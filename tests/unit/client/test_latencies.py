"""What is unusual, from how long lookups took."""

from __future__ import annotations

from kvmeta.client.latencies import FIRST_S, LAST, LEAST, Latencies


def test_the_default_latency_holds_until_enough_calls_are_measured() -> None:
    latencies = Latencies()
    for _ in range(LEAST - 1):
        latencies.note(9.0)
        assert latencies.unusual_s() == FIRST_S
    latencies.note(9.0)
    assert latencies.unusual_s() == 9.0


def test_95_of_100_latencies_are_below_the_unusual_one() -> None:
    latencies = Latencies()
    for each in range(100, 0, -1):
        latencies.note(float(each))
    assert sum(each < latencies.unusual_s() for each in range(1, 101)) == 95


def test_only_the_most_recent_latencies_count() -> None:
    latencies = Latencies()
    for _ in range(LAST):
        latencies.note(60.0)
    for _ in range(LAST):
        latencies.note(0.001)
    assert latencies.unusual_s() == 0.001
