"""The gRPC service: bytes in, a lane's answer out. Errors become statuses here and nowhere else.

call ── arrivals: read ── admission ── lane thread: parse, answer, serialise ── raw response
           │                  │                │
           └── KvmetaError ───┴────────────────┴── status with ErrorInfo (kvmeta/protocol/status.py)

Every call is unary, one message each way. The handlers are those of a stream of requests all the same, for
only these leave it to us when a message is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
import msgspec
from google.protobuf.message import Message

from kvmeta.errors import DeadlineError, InputError, KvmetaError
from kvmeta.protocol import status
from kvmeta.protocol.calls import (
    CLUSTER_METHODS,
    CLUSTER_SERVICE,
    METHODS,
    PEER_METHODS,
    PEER_SERVICE,
    SERVICE,
)
from kvmeta.protocol.frame import Frame, parse
from kvmeta_server.admission import Admission
from kvmeta_server.answers import Answers
from kvmeta_server.arrivals import Arrivals
from kvmeta_server.cluster.node import ClusterNode
from kvmeta_server.cluster.operators import Operators
from kvmeta_server.config import Limits
from kvmeta_server.jobs import Jobs
from kvmeta_server.lanes import Answer, Lane, Lanes
from kvmeta_server.logs import Log
from kvmeta_server.refusal import Refused

DEADLINE_S_MAX = 3600.0
"""A call that brings a longer deadline is treated as one that brings none."""
_SENDING_S = 5.0  # for the answer, or the status, to leave after the time is up
_READS = frozenset(
    (
        "Describe",
        "Lookup",
        "Get",
        "ListDatasets",
        "GetVolumes",
        "ListVolumes",
        "Stats",
        "Scan",
        "GetJob",
        "GetMap",
    )
)
"""What changes nothing: its answer may be given up."""

_Answer = Callable[[Any], Message | Frame]
_Behaviour = Callable[[Any, Any], Awaitable[bytes]]


class _Gates(NamedTuple):
    """What a call passes before it is answered."""

    admission: Admission
    arrivals: Arrivals


class Service:
    """The calls of kvmeta.v1.StoreService."""

    def __init__(
        self, answers: Answers, jobs: Jobs, lanes: Lanes, admission: Admission, limits: Limits, log: Log
    ) -> None:
        self._gates = _Gates(admission, Arrivals(limits))
        self._limits = limits
        self._log = log
        lookups, writes, others = lanes.lookups, lanes.writes, lanes.others
        self._answers: dict[str, tuple[Lane, _Answer]] = {
            "Describe": (lookups, answers.describe),
            "Lookup": (lookups, answers.lookup),
            "Get": (lookups, answers.get),
            "ListDatasets": (lookups, answers.list_datasets),
            "GetVolumes": (lookups, answers.get_volumes),
            "ListVolumes": (lookups, answers.list_volumes),
            "Stats": (lookups, answers.stats),
            "GetMap": (lookups, answers.get_map),
            # What waits for a disk, for room or for merges keeps none of the above waiting.
            "Write": (writes, answers.write),
            "Put": (writes, answers.put),
            "Delete": (writes, answers.delete),
            "Scan": (others, answers.scan),
            "CreateDataset": (others, answers.create_dataset),
            "DropDataset": (others, answers.drop_dataset),
            "AddVolume": (others, answers.add_volume),
            "UpdateVolume": (others, answers.update_volume),
            "Flush": (others, answers.flush),
        }
        self._waits: dict[str, Callable[[Any], Awaitable[Message]]] = {
            "StartJob": jobs.start,
            "GetJob": jobs.get,
        }

    def handler(self) -> Any:
        """Return the handler of every call of the protocol; KeyError where one has no answer."""
        handlers = {}
        for name, method in METHODS.items():
            if name in self._waits:
                behaviour = self._waiting(name, method.request, self._waits[name])
            else:
                lane, answer = self._answers[name]
                behaviour = self._answering(name, lane, on_bytes(method.request, answer))
            handlers[name] = grpc.stream_unary_rpc_method_handler(behaviour)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def node_handlers(self, node: ClusterNode) -> tuple[Any, ...]:
        """Return the handlers of what peers and operators ask of a node."""
        peers, operators = node.answers, Operators(node, node.tables.local_name)
        limits = msgspec.structs.replace(self._limits, calls_max=1 << 14, bytes_in_flight_max=1 << 30)
        mine = _Gates(Admission(limits), Arrivals(limits))
        asked: dict[str, Callable[[Any], Awaitable[Message | Frame]]] = {
            "Apply": peers.apply, "Fetch": peers.fetch, "Decide": peers.decide, "Rows": peers.rows,
            "Digest": peers.digest, "Repaired": peers.repaired, "State": peers.state,
        }  # fmt: skip
        operated: dict[str, Callable[[Any], Awaitable[Message | Frame]]] = {
            "GetStatus": operators.get_status,
            "ChangeMembers": operators.change_members,
            "Repair": operators.repair,
        }
        handlers = []
        for service, methods, answers in (
            (PEER_SERVICE, PEER_METHODS, asked),
            (CLUSTER_SERVICE, CLUSTER_METHODS, operated),
        ):
            behaviours = {
                name: grpc.stream_unary_rpc_method_handler(
                    self._waiting(name, method.request, answers[name], mine)
                )
                for name, method in methods.items()
            }
            handlers.append(grpc.method_handlers_generic_handler(service, behaviours))
        return tuple(handlers)

    def _answering(self, name: str, lane: Lane, answer: Answer) -> _Behaviour:
        return self._guarded(name, lambda raw: lane.answer(answer, raw))

    def _waiting(
        self,
        name: str,
        request: type[Message],
        answer: Callable[[Any], Awaitable[Message | Frame]],
        gates: _Gates | None = None,
    ) -> _Behaviour:
        async def waited(raw: bytes) -> bytes:
            return (await answer(parse(request, raw))).SerializeToString()

        # Whoever waits for a job may ask for its end while the server drains.
        return self._guarded(name, waited, while_draining=name == "GetJob", gates=gates)

    def _guarded(
        self,
        name: str,
        answer: Callable[[bytes], Awaitable[bytes]],
        *,
        while_draining: bool = False,
        gates: _Gates | None = None,
    ) -> _Behaviour:
        """Return the behaviour of call `name`: admitted, bounded in time, its errors told as statuses."""
        admission, arrivals = gates or self._gates

        async def answered(context: Any) -> bytes:
            left_s, peer, held = self._time_left(context), context.peer(), 0
            if left_s is None:
                self._end_in_time(context)
            # gRPC itself ends a call at its own deadline
            async with asyncio.timeout(self._limits.deadline_s if left_s is None else None):
                raw = await arrivals.message(peer, lambda: _one(context))
                admission.admit(peer, len(raw), while_draining=while_draining)
                held = len(raw)
                context.add_done_callback(lambda _: admission.release(peer, held))
                response = await answer(raw)
            admission.hold(peer, len(response), may_refuse=name in _READS)
            held += len(response)
            return response

        async def behaviour(_: Any, context: Any) -> bytes:
            try:
                return await answered(context)
            except Exception as error:  # noqa: BLE001 - told to the client
                code, told = self._told(name, error, context)
                # Its frames hold the message, which goes before the answer is on its way: gRPC keeps what is
                # raised here, in a cycle, and that would keep them.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                raise await _aborted(context, code, told) from None

        return behaviour

    def _end_in_time(self, context: Any) -> None:
        """Break the call off if even its answer has not left in time: a peer that does not read it."""
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(self._limits.deadline_s + _SENDING_S, task.cancel)
        context.add_done_callback(lambda _: timer.cancel())

    def _time_left(self, context: Any) -> float | None:
        left_s = context.time_remaining()
        if left_s is not None and left_s <= DEADLINE_S_MAX:
            return float(left_s)
        if self._limits.deadline_required:
            raise InputError("this server takes no call without a deadline; set one")
        return None

    def _late(self, name: str) -> DeadlineError:
        allowed = f"the {self._limits.deadline_s:g} s that a call without a deadline may take"
        return DeadlineError(f"{name}: not done within {allowed}")

    def _told(self, name: str, error: Exception, context: Any) -> tuple[grpc.StatusCode, Any]:
        """Return the status that tells of what became of a call."""
        if isinstance(error, Refused):
            self._log.debug("refused", reason=error.reason, message=str(error), peer=context.peer())
            code = grpc.StatusCode.UNAVAILABLE
            return code, status.status(code, error.reason, str(error))
        if isinstance(error, TimeoutError) and not isinstance(error, KvmetaError):
            error = self._late(name)
        if isinstance(error, KvmetaError):
            return status.of_error(error)
        self._log.fault(name, error)
        message = f"a fault of the server in {name}, {type(error).__name__}; its log says more"
        code = grpc.StatusCode.INTERNAL
        return code, status.status(code, status.FAULT, message)


async def _one(context: Any) -> bytes:
    """Return the message of a call; InputError where there is none, as of one that was taken back.

    By `read`, for the iterator of requests would keep the message as long as the call.
    """
    raw = await context.read()
    if not isinstance(raw, bytes):  # grpc.aio.EOF
        raise InputError("the call has no message")
    return raw


async def _aborted(context: Any, code: grpc.StatusCode, told: Any) -> BaseException:
    """End the call with what is told; return what must be raised for it."""
    try:
        await context.abort(code, told.message, ((status.DETAILS_KEY, told.SerializeToString()),))
    except grpc.aio.AbortError as error:
        return error
    raise AssertionError("an abort that returns")


def on_bytes(request: type[Message], answer: _Answer) -> Answer:
    """Return `answer` as a function of bytes; InputError where they are no such request."""

    def answered(raw: bytes) -> bytes:
        return answer(parse(request, raw)).SerializeToString()

    return answered
