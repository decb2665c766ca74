"""Pages of volumes: found by number and by URI, changed page by page, listed as bytes."""

from __future__ import annotations

import numpy as np
import pytest

from kvmeta.errors import CorruptionError
from kvmeta.protocol.volume_pages import VOLUMES, VolumePages, page_of
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import VolumeRow


def rows(first: int, last: int) -> list[VolumeRow]:
    return [VolumeRow(n, f"s3://bucket/{n}", str(n), size_bytes=n) for n in range(first, last + 1)]


def filled(count: int) -> VolumePages:
    pages = VolumePages()
    for page, raw in pages.pages_with(rows(1, count)).items():
        pages.take(page, raw)
    return pages


@pytest.mark.parametrize("count", [0, 1, VOLUMES, VOLUMES + 1, 20_000])
def test_every_volume_is_found_by_number_and_by_uri(count: int) -> None:
    pages = filled(count)
    assert len(pages) == count
    assert [int(volume) for volume in pages] == list(range(1, count + 1))
    for number in {1, count // 2, count} - {0}:
        assert pages.get(number) == (pages.of_uri(f"s3://bucket/{number}") if count else None)
    for number in (count + 1, count + VOLUMES):
        assert pages.get(number) is None
        assert pages.of_uri(f"s3://bucket/{number}") is None


def test_a_moved_volume_is_found_by_its_new_uri_alone() -> None:
    pages = filled(600)
    changed = pages.pages_with([VolumeRow(300, "s3://new", "n", "offline"), VolumeRow(601, "s3://b", "b")])
    assert sorted(changed) == [1, 2]
    assert pages.of_uri("s3://new") is None, "nothing changes before the pages are taken"
    for page, raw in changed.items():
        pages.take(page, raw)
    assert pages.of_uri("s3://bucket/300") is None
    assert pages.of_uri("s3://new") == VolumeRow(300, "s3://new", "n", "offline")
    pages.take(*pages.pages_with([VolumeRow(7, "s3://bucket/300", "again")]).popitem())
    found = pages.of_uri("s3://bucket/300")
    assert found is not None
    assert found.number == 7
    assert len(pages) == 601


def test_pages_together_are_the_answer_to_who_lists_them() -> None:
    pages = filled(5 * VOLUMES + 3)
    seen: list[int] = []
    done = False
    while not done:
        raw, done = pages.messages(seen[-1] if seen else 100, 2 * 256 * 40)
        numbers = [volume.number for volume in pb.ListVolumesResponse.FromString(raw).volumes]
        assert numbers
        seen += numbers
    assert seen == list(range(101, 5 * VOLUMES + 4))
    assert pages.messages(seen[-1], 1) == (b"", True)


def test_what_is_no_page_is_refused() -> None:
    ((page, raw),) = VolumePages().pages_with(rows(1, 10)).items()
    pages = VolumePages()
    for wrong in (raw[:-1], b"", raw[:4], b"\xff" * 40, np.arange(9).tobytes(), raw[:9] + b"\0" + raw[10:]):
        with pytest.raises(CorruptionError):
            pages.take(page, wrong)
    with pytest.raises(CorruptionError, match="others than its own"):
        pages.take(page + 1, raw)
    assert not len(pages)
    assert [page_of(number) for number in (1, VOLUMES, VOLUMES + 1)] == [0, 0, 1]
