"""The service over a real connection: limits, deadlines, statuses, clients that go away."""

from __future__ import annotations

import gc
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import lz4.block
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmeta
from bench import frames
from kvmeta import operators
from kvmeta.embedded import EmbeddedDataset, EmbeddedStore
from kvmeta.protocol.methods import STORE_METHODS, STORE_SERVICE
from kvmeta.transport.grpc import failure_of
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import kvmeta_pb2_grpc as rpc
from kvmeta_server import service
from kvmeta_server.admission import SHARE_OF_ONE, Admission
from kvmeta_server.arrivals import AT_ONCE
from kvmeta_server.refusal import Refused
from kvmeta_server.serving import Server
from tests.messages import packed as pack
from tests.patience import HANG_S, until
from tests.serving import PATIENT, running

Code = grpc.StatusCode
INVALID = Code.INVALID_ARGUMENT
IDS = kvmeta.ids_from_ints(np.arange(8, dtype=np.uint64))
PUT = pb.PutRequest(entry=pb.EntryName(key="a key"), location=pb.Location(volume=1))
FIRST = pb.LookupRequest(ids=pack(IDS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    path: Path = tmp_path_factory.mktemp("service") / "store"
    with EmbeddedStore(path) as store:
        yield store


@pytest.fixture(scope="module")
def server(store: EmbeddedStore) -> Iterator[Server]:
    with running(store, limits__deadline_s=0.5) as server:
        yield server


@pytest.fixture
def stub(server: Server) -> Iterator[rpc.StoreServiceStub]:
    with connected(server) as channel:
        yield rpc.StoreServiceStub(channel)


class Refusal(NamedTuple):
    code: grpc.StatusCode
    reason: str
    error: kvmeta.KvmetaError


def refusal_of(failed: Any) -> Refusal:
    told = failure_of(failed.code(), failed.details() or "", failed.trailing_metadata())
    return Refusal(failed.code(), told.reason, told.error)


def connected(server: Server) -> grpc.Channel:
    return grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])


def ends(call: Callable[..., Any], request: Any, **options: Any) -> Refusal:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, **{"timeout": HANG_S, **options})
    return refusal_of(raised.value)


def reason_of(call: Callable[..., Any], request: Any) -> str:
    """Return the reason that a call ends with, "" where it is answered."""
    try:
        call(request, timeout=HANG_S)
    except grpc.RpcError as error:
        return refusal_of(error).reason or error.code().name
    return ""


def settled(server: Server) -> None:
    """Wait until no call is counted any more."""
    until(lambda: not server.admission.calls and not server.admission.bytes, "a call is counted for ever")


def taken_on(server: Server, calls: int = 1) -> None:
    """Wait until so many calls are counted."""
    until(lambda: server.admission.calls >= calls, f"{calls} calls are never counted")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let lookups wait for an event."""
    go, plain = threading.Event(), EmbeddedDataset._lookup

    def lookup(self: EmbeddedDataset, ids: Any) -> Any:
        go.wait(HANG_S)
        return plain(self, ids)

    monkeypatch.setattr(EmbeddedDataset, "_lookup", lookup)
    yield go
    go.set()


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "told"),
    [
        ("Lookup", pb.LookupRequest(ids=pb.Packed(plain=b"x")), INVALID, "INPUT", "ids: 1 bytes"),
        ("Lookup", pb.LookupRequest(dataset="typo"), Code.NOT_FOUND, "NOT_FOUND", "typo"),
        ("Lookup", pb.LookupRequest(ids=pack(np.zeros(65_537, "V16"))), INVALID, "INPUT", "split"),
        ("Write", pb.WriteRequest(ids=pack(IDS)), INVALID, "INPUT", "operation"),
        ("Lookup", pb.LookupRequest(ids=pb.Packed(lz4=b"\x10\0\0\0x")), INVALID, "INPUT", "LZ4"),
        ("GetJob", pb.GetJobRequest(id="x"), Code.NOT_FOUND, "NOT_FOUND", "no job"),
    ],
)  # fmt: skip
def test_a_wrong_request_ends_with_its_status_and_reason(
    stub: Any, method: str, request_: Any, code: grpc.StatusCode, reason: str, told: str
) -> None:
    refusal = ends(getattr(stub, method), request_)
    assert (refusal.code, refusal.reason) == (code, reason)
    assert told in str(refusal.error)


def test_every_call_of_the_protocol_is_answered(stub: Any) -> None:
    for name, method in STORE_METHODS.items():
        assert reason_of(getattr(stub, name), method.request()) in (
            "",
            "INPUT",
            "NOT_FOUND",
            "UNSUPPORTED",
        ), name


def test_malformed_messages_are_input_errors(server: Server) -> None:
    with connected(server) as channel:
        call = channel.unary_unary("/kvmeta.v1.StoreService/Lookup")
        refusal = ends(call, b"\xff\xff\xff")
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INPUT")
        assert ends(channel.unary_unary("/kvmeta.v1.StoreService/Nothing"), b"").code == Code.UNIMPLEMENTED


@settings(max_examples=100)
@given(raw=st.binary(max_size=64))
def test_any_bytes_end_in_a_reply_or_a_reason(server: Server, raw: bytes) -> None:
    with connected(server) as channel:
        call = channel.unary_unary("/kvmeta.v1.StoreService/Write")
        assert reason_of(call, raw) in ("", "INPUT", "NOT_FOUND")


def test_a_message_over_the_limit_never_reaches_the_store(stub: Any) -> None:
    refusal = ends(stub.Lookup, pb.LookupRequest(ids=pb.Packed(plain=bytes(5 << 20))))
    assert refusal.code == Code.RESOURCE_EXHAUSTED
    assert "larger than max" in str(refusal.error)


@pytest.mark.slow
def test_a_compression_bomb_is_not_unpacked(stub: Any) -> None:
    zeros = bytes(64 << 20)
    by_grpc = ends(
        stub.Lookup, pb.LookupRequest(ids=pb.Packed(plain=zeros)), compression=grpc.Compression.Gzip
    )
    assert by_grpc.code == Code.RESOURCE_EXHAUSTED
    ours = ends(stub.Lookup, pb.LookupRequest(ids=pb.Packed(lz4=lz4.block.compress(zeros, store_size=True))))
    assert (ours.code, ours.reason) == (Code.INVALID_ARGUMENT, "INPUT")


def test_a_call_without_a_deadline_gets_one(stub: Any, server: Server, slow: threading.Event) -> None:
    refusal = ends(stub.Lookup, FIRST, timeout=None)
    assert (refusal.code, refusal.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE")
    assert "0.5 s that a call without a deadline may take" in str(refusal.error)
    slow.set()
    settled(server)


def test_an_answer_the_client_does_not_read_ends_with_its_deadline(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmeta_server.listening.grpc.SENDING_S", 0.2)
    admit, admitted = Admission.admit, threading.Event()

    def note(admission: Admission, *arguments: Any, **named: Any) -> None:
        admit(admission, *arguments, **named)
        admitted.set()

    with running(store, limits__deadline_s=0.5) as server, monkeypatch.context() as patch:
        patch.setattr(Admission, "admit", note)
        peer = frames.Connection(server.address, window_bytes=0)
        try:
            peer.call("/kvmeta.v1.StoreService/Lookup", FIRST.SerializeToString())
            assert admitted.wait(HANG_S)
            settled(server)
        finally:
            peer.close()
        with connected(server) as channel:
            stub: Any = rpc.StoreServiceStub(channel)
            assert stub.Lookup(FIRST, timeout=HANG_S).states.plain


def test_unread_answers_leave_room_for_other_clients(store: EmbeddedStore) -> None:
    with running(store, limits__bytes_in_flight_max=4_000) as server:
        greedy = [frames.Connection(server.address, window_bytes=0) for _ in range(3)]
        try:
            for peer in greedy:
                peer.call("/kvmeta.v1.StoreService/Lookup", FIRST.SerializeToString())
            taken_on(server, 3)
            with connected(server) as channel:
                stub: Any = rpc.StoreServiceStub(channel)
                assert stub.Lookup(FIRST, timeout=HANG_S).states.plain
        finally:
            for peer in greedy:
                peer.close()
        settled(server)


def test_the_deadline_of_a_repair_is_below_the_servers_maximum() -> None:
    assert operators.REPAIR_S < service.DEADLINE_S_MAX


def test_a_server_may_require_deadlines(store: EmbeddedStore) -> None:
    with running(store, limits__deadline_required=True) as server, connected(server) as channel:
        stub: Any = rpc.StoreServiceStub(channel)
        refusal = ends(stub.Lookup, FIRST, timeout=None)
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INPUT")
        assert "deadline" in str(refusal.error)
        assert stub.Lookup(FIRST, timeout=HANG_S).states.plain


def test_too_many_calls_at_once_are_refused_and_succeed_later(
    store: EmbeddedStore, slow: threading.Event
) -> None:
    with running(store, limits__calls_max=16) as server, ExitStack() as channels:
        stubs: list[Any] = [rpc.StoreServiceStub(channels.enter_context(connected(server))) for _ in range(5)]
        futures = [stub.Lookup.future(FIRST, timeout=HANG_S) for stub in stubs[:4] for _ in range(4)]
        taken_on(server, 16)
        refusal = ends(stubs[4].Lookup, FIRST)
        assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "OVERLOADED")
        assert "16 calls are in flight, of at most 16" in str(refusal.error)
        slow.set()
        assert all(future.result().states.plain for future in futures)
        settled(server)


def test_one_connection_gets_only_its_share(store: EmbeddedStore, slow: threading.Event) -> None:
    with running(store, limits__calls_max=16) as server, connected(server) as channel:
        stub: Any = rpc.StoreServiceStub(channel)
        futures = [stub.Lookup.future(FIRST, timeout=HANG_S) for _ in range(4)]
        taken_on(server, 4)
        refusal = ends(stub.Lookup, FIRST)
        assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "OVERLOADED")
        assert "this connection has 4 calls in flight, of at most 4" in str(refusal.error)
        with connected(server) as other:
            rpc.StoreServiceStub(other).Put(PUT, timeout=HANG_S)
        slow.set()
        assert all(future.result().states.plain for future in futures)
        settled(server)


def test_the_sdk_retries_when_a_server_is_full(
    store: EmbeddedStore, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, refused = Admission.admit, threading.Event()

    def note(admission: Admission, *arguments: Any, **named: Any) -> None:
        try:
            admit(admission, *arguments, **named)
        except Refused:
            refused.set()
            raise

    monkeypatch.setattr(Admission, "admit", note)
    with (
        running(store, limits__calls_max=4) as server,
        kvmeta.open(f"kvmeta://{server.address}", options=PATIENT) as client,
    ):
        entries = client.dataset()
        threads = [threading.Thread(target=entries.lookup, args=(IDS,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert refused.wait(HANG_S)
        slow.set()
        for thread in threads:
            thread.join(HANG_S)
            assert not thread.is_alive()


def test_a_client_that_goes_away_leaves_nothing_behind(server: Server, slow: threading.Event) -> None:
    with connected(server) as channel:
        stub: Any = rpc.StoreServiceStub(channel)
        future = stub.Lookup.future(FIRST, timeout=HANG_S)
        taken_on(server)
        future.cancel()
    slow.set()
    settled(server)


def test_a_fault_is_reported_without_internals_and_the_server_continues(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedDataset, "_lookup", lambda self, ids: 1 // 0)
        refusal = ends(stub.Lookup, FIRST)
    assert (refusal.code, refusal.reason) == (Code.INTERNAL, "FAULT")
    assert "ZeroDivisionError; its log says more" in str(refusal.error)
    assert stub.Lookup(FIRST, timeout=HANG_S).states.plain


@pytest.mark.slow
@pytest.mark.parametrize("ids", [pb.Packed(plain=bytes((1 << 20) + 1)), pb.Packed(lz4=bytes(1 << 20))])
def test_a_refused_message_is_freed_at_once(server: Server, ids: pb.Packed) -> None:
    """Not when a cycle is collected: refused messages of a flood took 700 MB until then."""
    raw = pb.LookupRequest(ids=ids).SerializeToString()
    with connected(server) as channel:
        call = channel.unary_unary("/kvmeta.v1.StoreService/Lookup")
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                ends(call, raw)
            settled(server)
            held = [one for one in gc.get_objects() for each in gc.get_referents(one)
                    if isinstance(each, bytes) and each is not raw and len(each) == len(raw)]  # fmt: skip
            assert len(held) <= 2
        finally:
            gc.enable()


def test_bytes_that_are_no_http2_end_only_their_connection(server: Server, stub: Any) -> None:
    host, port = server.address.rsplit(":", 1)
    for junk in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ):
        with socket.create_connection((host, int(port)), timeout=HANG_S) as raw:
            raw.sendall(junk)
            raw.settimeout(HANG_S)
            while raw.recv(4096):
                pass
    assert stub.Lookup(FIRST, timeout=HANG_S).states.plain


def test_any_number_of_pings_is_answered(server: Server, stub: Any) -> None:
    """Pings that gRPC holds against a peer cost it a copy of all the earlier ones each: a flood stops it."""
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=HANG_S) as raw:
        raw.sendall(frames.PREFACE + frames.encoded(frames.SETTINGS, 0, 0, b""))
        for first in range(0, 3000, 1000):
            numbers = [struct.pack(">Q", first + i) for i in range(1000)]
            raw.sendall(b"".join(frames.encoded(frames.PING, 0, 0, number) for number in numbers))
            answers = b""
            while frames.encoded(frames.PING, frames.ACK, 0, numbers[-1]) not in answers:
                came = raw.recv(1 << 16)
                assert came, "the server hung up"
                answers += came
    assert stub.Lookup(FIRST, timeout=HANG_S).states.plain


def test_health_and_reflection_report_the_services(server: Server) -> None:
    with connected(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", STORE_SERVICE):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=HANG_S)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        listed = next(iter(reflection.ServerReflectionInfo(ask, timeout=HANG_S)))
        assert STORE_SERVICE in [each.name for each in listed.list_services_response.service]


def test_a_second_server_on_a_port_is_refused(server: Server, store: EmbeddedStore) -> None:
    with (
        pytest.raises(kvmeta.UnavailableError, match="cannot listen on"),
        running(store, listen=server.address),
    ):
        pass


def test_a_draining_server_lets_calls_end_and_refuses_new_ones(
    store: EmbeddedStore, slow: threading.Event
) -> None:
    with running(store) as server, connected(server) as channel:
        stub: Any = rpc.StoreServiceStub(channel)
        stub.Describe(pb.DescribeRequest(), timeout=HANG_S)
        settled(server)
        future = stub.Lookup.future(FIRST, timeout=HANG_S)
        taken_on(server)
        server.admission.drain()
        refusal = ends(stub.Describe, pb.DescribeRequest())
        assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "DRAINING")
        slow.set()
        assert future.result().states.plain


def test_waiting_flushes_do_not_block_other_calls(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(EmbeddedStore, "flush", lambda self: go.wait(HANG_S))
    with running(store) as server, connected(server) as channel:
        stub: Any = rpc.StoreServiceStub(channel)
        flushes = [stub.Flush.future(pb.FlushRequest(), timeout=HANG_S) for _ in range(8)]
        taken_on(server, 8)
        with kvmeta.open(f"kvmeta://{server.address}") as client:
            assert client.dataset().lookup(IDS) is not None
        go.set()
        for flush in flushes:
            flush.result()


def test_half_sent_messages_do_not_block_other_clients(store: EmbeddedStore) -> None:
    with running(store) as server:
        hostile = [frames.Connection(server.address) for _ in range(SHARE_OF_ONE + 1)]
        try:
            for peer in hostile:
                for _ in range(AT_ONCE):
                    peer.call("/kvmeta.v1.StoreService/Lookup", FIRST.SerializeToString(), 0.5)
            with connected(server) as channel:
                stub: Any = rpc.StoreServiceStub(channel)
                assert stub.Lookup(FIRST, timeout=HANG_S).states.plain
        finally:
            for peer in hostile:
                peer.close()
        settled(server)


def test_a_call_without_a_message_is_an_input_error(server: Server) -> None:
    with connected(server) as channel:
        call = channel.stream_unary("/kvmeta.v1.StoreService/Describe")
        with pytest.raises(grpc.RpcError) as raised:
            call(iter(()), timeout=HANG_S)
        assert refusal_of(raised.value).reason == "INPUT"
