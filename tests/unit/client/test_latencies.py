"""What is unusual, from how long lookups took."""

from __future__ import annotations

from kvmeta.client.latencies import FIRST_S, LAST, LEAST, Latencies


def test_before_there_are_enough_the_first_guess_holds() -> None:
    latencies = Latencies()
    for _ in range(LEAST - 1):
        latencies.note(9.0)
        assert latencies.unusual_s() == FIRST_S
    latencies.note(9.0)
    assert latencies.unusual_s() == 9.0


def test_95_of_100_stay_below_what_is_unusual() -> None:
    latencies = Latencies()
    for each in range(100, 0, -1):
        latencies.note(float(each))
    assert sum(each < latencies.unusual_s() for each in range(1, 101)) == 95


def test_only_the_last_ones_count() -> None:
    latencies = Latencies()
    for _ in range(LAST):
        latencies.note(60.0)
    for _ in range(LAST):
        latencies.note(0.001)
    assert latencies.unusual_s() == 0.001
