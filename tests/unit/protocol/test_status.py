"""The table of errors and statuses, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from google.rpc import code_pb2, status_pb2

import kvmeta
from kvmeta import errors
from kvmeta.protocol import status

CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.KvmetaError)
]


def made(kind: type[errors.KvmetaError]) -> errors.KvmetaError:
    if kind is errors.IncompleteBatchError:
        return kind("a message", np.zeros(1, np.bool_), None)
    return kind("a message")


def sent(told: status_pb2.Status) -> status.Told:
    """Return what a client is told by a status."""
    return status.told_by(told.message, told.SerializeToString())


def test_every_error_has_a_row_of_its_own() -> None:
    assert {kind for kind, _, _ in status.TABLE} == set(CLASSES)
    assert len({reason for _, _, reason in status.TABLE}) == len(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_keeps_its_class_across_the_wire(kind: type[errors.KvmetaError]) -> None:
    refusal = sent(status.of_error(made(kind)))
    expected = errors.CorruptionError if kind is errors.IncompleteBatchError else kind
    assert type(refusal.error) is expected
    assert str(refusal.error) == "a message"
    assert refusal.reason == status.reason_of(made(kind))


def test_the_table_lists_subclasses_before_their_base_classes() -> None:
    for i, (kind, _, _) in enumerate(status.TABLE):
        assert not any(issubclass(kind, earlier) for earlier, _, _ in status.TABLE[:i])


def test_corruption_keeps_its_path_and_ranges() -> None:
    error = errors.CorruptionError("damaged", "/store/1.seg", [(1, 2), (1 << 127, (1 << 128) - 1)])
    back = sent(status.of_error(error)).error
    assert isinstance(back, kvmeta.CorruptionError)
    assert (back.path, back.ranges) == (error.path, error.ranges)


@pytest.mark.parametrize("letter", ["x", "ü", "語", "\udcff"])
def test_long_messages_and_many_ranges_fit_the_metadata(letter: str) -> None:
    error = errors.CorruptionError(letter * 100_000, letter * 100_000, [(i, i) for i in range(10_000)])
    told = status.of_error(error)
    percent_encoded, base64 = 3 * len(told.message.encode()), 4 * told.ByteSize() // 3
    assert percent_encoded + base64 < 8000


def test_names_that_are_not_valid_text_are_escaped() -> None:
    assert status.of_error(errors.InputError("bad \udcff name")).message == "bad \\udcff name"


@pytest.mark.parametrize("ranges", ["", "x", "1", "1-", "-", "1-2-3", "g-h", "1-2,", f"{'f' * 33}-1"])
def test_odd_metadata_raises_no_error_of_its_own(ranges: str) -> None:
    told = status.status(code_pb2.DATA_LOSS, "CORRUPTION", "bad", {"ranges": ranges})
    assert isinstance(sent(told).error, kvmeta.CorruptionError)


def test_malformed_details_give_no_reason() -> None:
    assert status.told_by("x", b"\xff\xff").reason == ""


def test_a_status_without_error_info_has_no_reason() -> None:
    refusal = status.told_by("connection reset", None)
    assert refusal.reason == ""
    assert str(refusal.error) == "connection reset"
    assert type(refusal.error) is kvmeta.KvmetaError


def test_an_unknown_reason_of_a_newer_server_becomes_a_general_error() -> None:
    refusal = sent(status.status(code_pb2.ABORTED, "SOMETHING_NEW", "later"))
    assert (type(refusal.error), refusal.reason) == (kvmeta.KvmetaError, "")
