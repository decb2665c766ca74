"""The programs, run by hand: what is asked, in which messages, and what errors do to a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import kvmeta
from kvmeta.client.calls import Call
from kvmeta.client.catalogue import StorePrograms, describe
from kvmeta.client.options import ClientOptions
from kvmeta.client.programs import DatasetPrograms
from kvmeta.client.routing import Router
from kvmeta.protocol.columns import CODE, VERSION, unpack_up_to
from kvmeta.store import Scan
from kvmeta.v1 import kvmeta_pb2 as pb
from tests.messages import column_of
from tests.messages import packed as pack

IDS = kvmeta.ids_from_ints(np.arange(10, dtype=np.uint64))
LOCATIONS = np.zeros(10, kvmeta.LOCATION)
Answer = Callable[[Call], Any]


def run(program: Any, answer: Answer, sent: list[Call] | None = None) -> Any:
    """Run a program; `answer` returns a reply or an error for each call, one after the other."""
    errors: Any = None
    while True:
        try:
            yielded: Iterable[Call] = next(program) if errors is None else program.send(errors)
        except StopIteration as end:
            return end.value
        errors = []
        for raw in yielded:
            call = raw._replace(request=raw.method.request.FromString(raw.request))
            if sent is not None:
                sent.append(call)
            reply = answer(call)
            if isinstance(reply, kvmeta.KvmetaError):
                errors.append(reply)
                break
            call.take(reply.SerializeToString())
            errors.append(None)


def dataset(rows_max: int = 4, **options: Any) -> DatasetPrograms:
    return DatasetPrograms("default", ClientOptions(**options), rows_max)


def store() -> StorePrograms:
    return StorePrograms(ClientOptions(), Router(("server:7400",)))


def rows_of(call: Call) -> int:
    return len(call.request.ids.plain) // 16


def found(call: Call) -> pb.LookupResponse:
    n = rows_of(call)
    first = (
        unpack_up_to(column_of(call.request.ids), np.dtype("V16"), n, "ids").view(">u8").reshape(-1, 2)[:, 1]
    )
    locations = np.zeros(n, kvmeta.LOCATION)
    locations["offset"] = first
    return pb.LookupResponse(
        states=pack(np.ones(n, CODE)), locations=pack(locations), versions=pack(np.full(n, 9, VERSION))
    )


def test_a_lookup_is_split_and_put_together_in_order() -> None:
    sent: list[Call] = []
    hits = run(dataset(lookup_rows=3).lookup(IDS), found, sent)
    assert [rows_of(call) for call in sent] == [3, 3, 3, 1]
    assert hits.locations["offset"].tolist() == list(range(10))
    assert hits.found.all()


def test_a_lookup_message_never_exceeds_the_servers_row_limit() -> None:
    sent: list[Call] = []
    run(dataset(rows_max=4).lookup(IDS), found, sent)
    assert [rows_of(call) for call in sent] == [4, 4, 2]


def test_an_empty_batch_is_still_sent_to_the_server() -> None:
    sent: list[Call] = []
    assert len(run(dataset().lookup(IDS[:0]), found, sent)) == 0
    assert len(sent) == 1


def test_a_short_column_in_a_reply_raises_an_input_error() -> None:
    with pytest.raises(kvmeta.InputError, match="states: expected 4 rows"):
        run(dataset().lookup(IDS[:4]), lambda call: pb.LookupResponse())


def test_a_partly_failed_put_names_its_unacknowledged_rows() -> None:
    def answer(call: Call) -> Any:
        return (
            kvmeta.StorageFullError("full")
            if IDS[5].tobytes() in call.request.ids.plain
            else pb.WriteResponse()
        )

    with pytest.raises(kvmeta.StorageFullError) as raised:
        run(dataset().put(IDS, LOCATIONS), answer)
    assert raised.value.failed is not None
    assert raised.value.failed.tolist() == [False] * 4 + [True] * 6


def test_puts_send_the_last_and_inserts_the_first_of_repeated_ids() -> None:
    ids = np.concatenate([IDS, IDS])
    for last in (True, False):
        sent: list[Call] = []
        locations = np.zeros(20, kvmeta.LOCATION)
        locations["offset"] = np.arange(20)
        calls = dataset()
        if last:
            run(calls.put(ids, locations), lambda call: pb.WriteResponse(), sent)
        else:
            result = run(calls.insert(ids, locations), inserted, sent)
            assert result.inserted.tolist() == [True] * 10 + [False] * 10
        offsets = [
            unpack_up_to(column_of(call.request.locations), kvmeta.LOCATION, 4, "l")["offset"]
            for call in sent
        ]
        assert np.concatenate(offsets).tolist() == list(range(10, 20) if last else range(10))


def inserted(call: Call) -> pb.WriteResponse:
    n = rows_of(call)
    return pb.WriteResponse(
        outcomes=pack(np.zeros(n, CODE)),
        locations=call.request.locations,
        versions=pack(np.ones(n, VERSION)),
    )


def test_puts_may_be_repeated_and_inserts_may_not() -> None:
    sent: list[Call] = []
    calls = dataset(rows_max=10)
    run(calls.put(IDS, LOCATIONS), lambda call: pb.WriteResponse(), sent)
    run(calls.delete(IDS), lambda call: pb.WriteResponse(), sent)
    run(calls.insert(IDS, LOCATIONS), inserted, sent)
    assert [(call.repeatable, call.method.row.changes) for call in sent] == [
        (True, True),
        (True, True),
        (False, True),
    ]


def test_a_load_message_waits_for_an_earlier_one_sharing_its_ids() -> None:
    groups: list[int] = []
    program = dataset(rows_max=10).load(
        [(IDS[:5], LOCATIONS[:5]), (IDS[5:], LOCATIONS[5:]), (IDS[4:6], LOCATIONS[:2])]
    )
    ended = None
    yielded: Any = next(program)
    while ended is None:
        calls = list(yielded)
        groups.append(len(calls))
        try:
            yielded = program.send([None] * len(calls))
        except StopIteration as end:
            ended = end.value
    assert ended == 12
    assert groups == [2, 1]


def test_a_job_is_polled_until_it_ends_and_its_damages_paged() -> None:
    asked: list[Call] = []
    damage = pb.Damage(path="/x", dataset="default", reason="bad")

    def answer(call: Call) -> Any:
        running = pb.Job(id="1", state=pb.JOB_STATE_RUNNING, done=1, total=2)
        if call.method.name == "StartJob":
            return pb.StartJobResponse(job=running)
        if len(asked) < 4:
            return pb.GetJobResponse(job=running)
        report = pb.VerifyReport(segments=1, pages=1, damages=[damage], damages_total=3)
        return pb.GetJobResponse(job=pb.Job(id="1", state=pb.JOB_STATE_DONE, report=report))

    report = run(store().verify(None), answer, asked)
    assert len(report.damages) == 3
    assert [call.request.damages_from for call in asked[4:]] == [1, 2]


def test_a_failed_job_raises_its_own_error() -> None:
    error = pb.JobError(reason="STORAGE_FULL", message="no room")
    job = pb.Job(id="1", state=pb.JOB_STATE_FAILED, error=error)
    with pytest.raises(kvmeta.StorageFullError, match="no room"):
        run(store().compact(False, None), lambda call: pb.StartJobResponse(job=job))


@pytest.mark.parametrize("number", [0, -1, 1 << 32])
def test_an_impossible_volume_number_raises_not_found(number: int) -> None:
    with pytest.raises(kvmeta.NotFoundError):
        run(store().volumes([number]), lambda call: None)


def coded(call: Call, code: int) -> Any:
    n = rows_of(call)
    column, zeros = pack(np.full(n, code, CODE)), pack(np.zeros(n, VERSION))
    rows = pack(np.zeros(n, kvmeta.LOCATION))
    if call.method.name == "Lookup":
        return pb.LookupResponse(states=column, locations=rows, versions=zeros)
    return pb.WriteResponse(outcomes=column, locations=rows, versions=zeros)


@pytest.mark.parametrize("code", [9, 255])
def test_unknown_codes_of_a_newer_server_count_as_failures(code: int) -> None:
    calls = dataset(rows_max=10)
    hits = run(calls.lookup(IDS), lambda call: coded(call, code))
    assert hits.failed.all()
    assert not hits.found.any()
    assert run(calls.insert(IDS, LOCATIONS), lambda call: coded(call, code)).failed.all()
    relocated = run(calls.relocate(IDS, LOCATIONS, np.ones(10, np.uint64)), lambda call: coded(call, code))
    assert relocated.reason(0) == "failed"


def test_a_job_in_an_unknown_state_raises_an_error() -> None:
    with pytest.raises(kvmeta.KvmetaError):
        run(
            store().compact(False, None),
            lambda call: pb.StartJobResponse(job=pb.Job(id="1", state=7)),
        )


def test_a_list_or_scan_that_never_ends_raises_an_error() -> None:
    again = pb.ListVolumesResponse(volumes=[pb.Volume(number=1, uri="s3://a/b")])
    with pytest.raises(kvmeta.UnavailableError, match="lists a volume again"):
        run(store().list_volumes(), lambda call: again)
    page = pb.ScanResponse(cursor=bytes(16))
    with pytest.raises(kvmeta.InputError, match="does not continue"):
        run(dataset().scan_page(Scan(after=bytes(16))), lambda call: page)


def test_a_peer_that_accepts_no_rows_is_not_a_kvmeta_server() -> None:
    with pytest.raises(kvmeta.UnavailableError, match="is it a kvmeta server"):
        run(describe(), lambda call: pb.DescribeResponse())
