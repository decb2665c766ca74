"""Which calls are tried again, when, and what the others raise."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

import kvmeta
from kvmeta.client.attempts import PAUSE_S_MAX, Attempts, Call
from kvmeta.protocol import status
from kvmeta.protocol.methods import METHODS
from kvmeta.transport.failures import CallFailed
from kvmeta.transport.grpc import DETAILS_KEY, failure_of

Code = grpc.StatusCode
READ = Call(METHODS["Lookup"], b"", print, repeatable=True)
PUT = Call(METHODS["Write"], b"", print, repeatable=True)
INSERT = Call(METHODS["Write"], b"", print, repeatable=False)


def Failed(code: grpc.StatusCode, message: str) -> CallFailed:  # noqa: N802 - reads as what it makes
    return failure_of(code, message, None)


def sent(told: Any) -> CallFailed:
    """Return how a call fails that a kvmeta server ends with a status."""
    code = next(code for code in grpc.StatusCode if code.value[0] == told.code)
    return failure_of(code, told.message, ((DETAILS_KEY, told.SerializeToString()),))


BROKEN = Failed(Code.UNAVAILABLE, "Socket closed")
UNREACHED = Failed(Code.UNAVAILABLE, "failed to connect to all addresses; last error: refused")
REFUSED_STREAM = Failed(
    Code.UNAVAILABLE, "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))"
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(call: Call, timeout_s: float = 10.0, clock: Clock | None = None) -> Attempts:
    return Attempts(call, "server:7400", timeout_s, clock or Clock(), lambda: 1.0)


def refused(reason: str) -> CallFailed:
    return sent(status.status(code_pb2.UNAVAILABLE, reason, "not now"))


def fault() -> CallFailed:
    return sent(status.status(code_pb2.INTERNAL, status.FAULT, "a fault"))


@pytest.mark.parametrize("call", [READ, PUT, INSERT])
@pytest.mark.parametrize(
    "failed", [refused(status.OVERLOADED), refused(status.DRAINING), UNREACHED, REFUSED_STREAM]
)
def test_a_call_that_the_server_did_not_start_is_retried(call: Call, failed: CallFailed) -> None:
    assert attempts(call).after(failed) > 0


def newer(code: grpc.StatusCode) -> CallFailed:
    """Return a failure whose reason this version does not know."""
    return sent(status.status(code.value[0], "SOMETHING_NEW", "told"))


def test_an_unknown_reason_is_handled_by_its_status_code() -> None:
    assert attempts(READ).after(newer(Code.UNAVAILABLE)) > 0
    with pytest.raises(kvmeta.OutcomeUnknownError):
        attempts(INSERT).after(newer(Code.UNAVAILABLE))
    with pytest.raises(kvmeta.DeadlineError):
        attempts(READ).after(newer(Code.DEADLINE_EXCEEDED))


def test_handling_a_failure_late_uses_up_no_deadline() -> None:
    clock = Clock()
    late = attempts(PUT, 10.0, clock)
    clock.now += 1
    late.ended()
    clock.now += 60
    assert late.after(refused(status.OVERLOADED)) > 0
    assert late.left_s() == pytest.approx(9)
    clock.now += 9
    with pytest.raises(kvmeta.UnavailableError):
        late.after(refused(status.OVERLOADED))


@pytest.mark.parametrize(
    ("call", "sent", "kind"),
    [
        (READ, True, kvmeta.InputError),
        (PUT, True, kvmeta.OutcomeUnknownError),
        (INSERT, True, kvmeta.OutcomeUnknownError),
        (INSERT, False, kvmeta.InputError),
    ],
)
def test_a_sent_write_cut_off_by_close_has_an_unknown_outcome(call: Call, sent: bool, kind: type) -> None:
    error = attempts(call).cut_off(sent=sent)
    assert type(error) is kind
    assert "closed meanwhile" in str(error)


def test_an_unresolvable_host_name_counts_as_never_reached() -> None:
    with grpc.insecure_channel("kvmeta.invalid:7400") as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/kvmeta.v1.StoreService/Write")(b"", timeout=20)
    told: Any = raised.value
    assert attempts(INSERT).after(failure_of(told.code(), told.details(), ())) > 0


@pytest.mark.parametrize("call", [READ, PUT])
@pytest.mark.parametrize("failed", [BROKEN, Failed(Code.CANCELLED, "stream reset")])
def test_a_safe_call_is_tried_again_when_the_connection_breaks(call: Call, failed: CallFailed) -> None:
    assert attempts(call).after(failed) > 0


@pytest.mark.parametrize(
    "failed",
    [BROKEN, Failed(Code.CANCELLED, ""), Failed(Code.DEADLINE_EXCEEDED, ""), Failed(Code.INTERNAL, ""),
     Failed(Code.UNKNOWN, ""), fault(), sent(status.of_error(kvmeta.DeadlineError("60 s")))],
)  # fmt: skip
def test_an_insert_without_an_answer_is_never_tried_again(failed: CallFailed) -> None:
    with pytest.raises(kvmeta.OutcomeUnknownError, match="may or may not have taken effect"):
        attempts(INSERT).after(failed)


@pytest.mark.parametrize(
    ("call", "failed", "kind"),
    [
        (READ, Failed(Code.DEADLINE_EXCEEDED, ""), kvmeta.DeadlineError),
        (PUT, Failed(Code.DEADLINE_EXCEEDED, ""), kvmeta.DeadlineError),
        (READ, Failed(Code.INTERNAL, "x"), kvmeta.UnavailableError),
        (PUT, Failed(Code.INTERNAL, "x"), kvmeta.OutcomeUnknownError),
        (READ, fault(), kvmeta.UnavailableError),
        (PUT, fault(), kvmeta.OutcomeUnknownError),
        (PUT, Failed(Code.UNIMPLEMENTED, "x"), kvmeta.UnsupportedError),
        (READ, Failed(Code.RESOURCE_EXHAUSTED, "message larger than max"), kvmeta.InputError),
        (INSERT, Failed(Code.RESOURCE_EXHAUSTED, "message larger than max"), kvmeta.OutcomeUnknownError),
        (PUT, Failed(Code.RESOURCE_EXHAUSTED, "message larger than max"), kvmeta.OutcomeUnknownError),
        (INSERT, Failed(Code.UNAUTHENTICATED, "who"), kvmeta.UnavailableError),
        (INSERT, sent(status.of_error(kvmeta.StorageFullError("full"))), kvmeta.StorageFullError),
        (READ, sent(status.of_error(kvmeta.UnavailableError("no device"))), kvmeta.UnavailableError),
    ],
)
def test_every_other_failure_raises_its_own_error_type(
    call: Call, failed: CallFailed, kind: type[Exception]
) -> None:
    with pytest.raises(kvmeta.KvmetaError) as raised:
        attempts(call).after(failed)
    assert type(raised.value) is kind


def test_pauses_double_up_to_a_limit_and_end_at_the_deadline() -> None:
    clock = Clock()
    tries = attempts(READ, 10.0, clock)
    pauses = []
    for _ in range(8):
        pauses.append(tries.after(BROKEN))
        clock.now += pauses[-1]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, PAUSE_S_MAX, PAUSE_S_MAX]
    clock.now += PAUSE_S_MAX
    with pytest.raises(
        kvmeta.UnavailableError, match=r"server:7400, Lookup: Socket closed \(not done within"
    ):
        tries.after(BROKEN)


def test_an_abandoned_put_says_whether_it_may_have_taken_effect() -> None:
    for first, told in ((BROKEN, True), (UNREACHED, False)):
        clock = Clock()
        tries = attempts(PUT, 1.0, clock)
        tries.after(first)
        clock.now += 1
        with pytest.raises(kvmeta.UnavailableError) as raised:
            tries.after(UNREACHED)
        assert ("may or may not have taken effect" in str(raised.value)) == told


def test_a_call_past_its_deadline_keeps_one_millisecond() -> None:
    clock = Clock()
    tries = attempts(READ, 1.0, clock)
    clock.now += 5
    assert tries.left_s() == 0.001


def test_a_malformed_reply_to_a_write_leaves_its_outcome_unknown() -> None:
    error: Any = kvmeta.InputError("states: 3 rows")
    assert isinstance(attempts(READ).malformed(error), kvmeta.UnavailableError)
    assert isinstance(attempts(PUT).malformed(error), kvmeta.OutcomeUnknownError)


def test_the_last_error_of_a_put_mentions_an_uncertain_first_attempt() -> None:
    tries = attempts(PUT)
    tries.after(BROKEN)
    with pytest.raises(kvmeta.ReadOnlyError, match="read-only; it may or may not have taken effect"):
        tries.after(sent(status.of_error(kvmeta.ReadOnlyError("read-only"))))
