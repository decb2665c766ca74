"""Volumes, figures and findings as messages and back."""

from __future__ import annotations

import pytest

from kvmeta.protocol import records
from kvmeta.store import Damage, DatasetStats, StoreStats, VerifyReport
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import Volume

STATS = DatasetStats("default", None, 1, 2, 3, 4, 5, 6, 7, 8, 9, True)


@pytest.mark.parametrize("size", [None, 0, 1 << 40])
@pytest.mark.parametrize("state", ["online", "offline"])
def test_a_volume_survives_encoding_and_decoding(state: str, size: int | None) -> None:
    volume = Volume((1 << 32) - 1, "file:///ä b", "ä", state, size)
    back = records.volume(records.volume_message(volume))
    assert vars(back) == vars(volume)
    assert back == volume


@pytest.mark.parametrize("ttl_s", [None, 0.5])
def test_stats_survive_encoding_and_decoding(ttl_s: float | None) -> None:
    dataset = DatasetStats(**{**vars(STATS), "ttl_s": ttl_s})
    stats = StoreStats("/data", 1, False, 10, 20, 30, (dataset, STATS))
    assert records.stats(records.stats_message(stats)) == stats


def test_a_verify_report_is_rebuilt_from_its_pages() -> None:
    damages = (
        Damage("/a", "default", None, None, None, "gone"),
        Damage("/b", "other", 0, 0, (1 << 128) - 1, "header"),
        Damage("/b", "other", 7, 5, 6, "page"),
    )
    pages = [pb.VerifyReport(segments=2, pages=9, damages=[records.damage_message(damages[0])])]
    pages.append(pb.VerifyReport(segments=2, pages=9, damages=map(records.damage_message, damages[1:])))
    assert records.report(pages) == VerifyReport(2, 9, damages)
