"""The service: bytes in, an answer's bytes out, whatever they travelled by. One guard for every call.

    call ── arrivals: read ── admission ── answer ── bytes
              │                  │           │
              └── KvmetaError ───┴───────────┴── status with ErrorInfo (kvmeta/protocol/status.py)

Where an answer is made, `kvmeta/protocol/methods.py` says: by a thread of a lane, which parses, answers and
serialises; or on the event loop, which is where all of a cluster's are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.code_pb2 import Code

from kvmeta.errors import DeadlineError, InputError, KvmetaError
from kvmeta.protocol import status
from kvmeta.protocol.messages import ColumnMessage, MessageBytes, parse
from kvmeta.protocol.methods import CLUSTER_METHODS, PEER_METHODS, STORE_METHODS, Lane, Method
from kvmeta_server.admission import Admission
from kvmeta_server.answers import Answers
from kvmeta_server.arrivals import Arrivals
from kvmeta_server.backend import at_once
from kvmeta_server.config import Limits
from kvmeta_server.jobs import Jobs
from kvmeta_server.lanes import Lanes
from kvmeta_server.logs import Log
from kvmeta_server.refusal import Refused

DEADLINE_S_MAX = 3600.0
"""A call that brings a longer deadline is treated as one that brings none."""

Answer = Callable[[Any], Awaitable[Message | ColumnMessage | MessageBytes]]
Answered = Callable[[bytes], Awaitable[bytes]]


class Arrival(Protocol):
    """A call that has arrived, as its listener sees it."""

    @property
    def peer(self) -> str:
        """Return which connection it came by."""

    def left_s(self) -> float | None:
        """Return how long it may take; None where it brought no deadline."""

    async def message(self) -> bytes:
        """Read its message; InputError where there is none."""

    def end_after(self, seconds: float) -> None:
        """Break it off if even its answer has not left by then."""

    def when_left(self, callback: Callable[[], None]) -> None:
        """Call `callback` once its answer has left, or it has ended otherwise."""


class Failed(Exception):  # noqa: N818 - what became of the call
    """A call that is answered by a status."""

    def __init__(self, told: status_pb2.Status) -> None:
        super().__init__(told.message)
        self.told = told


class Gates(NamedTuple):
    """What a call passes before it is answered."""

    admission: Admission
    arrivals: Arrivals


class Endpoint(NamedTuple):
    """A call as a listener offers it: what it is, and what answers an arrival of it."""

    method: Method
    answer: Callable[[Arrival], Awaitable[bytes]]
    """Returns the response's bytes, or raises Failed."""


class Service:
    """Answers, each behind the guard."""

    def __init__(self, lanes: Lanes, admission: Admission, limits: Limits, log: Log) -> None:
        self._lanes = {Lane.LOOKUPS: lanes.lookups, Lane.WRITES: lanes.writes, Lane.OTHERS: lanes.others}
        self._gates = Gates(admission, Arrivals(limits))
        self._limits = limits
        self._log = log

    def of_store(self, answers: Answers, jobs: Jobs, *, waits: bool) -> list[Endpoint]:
        """Return the calls of clients; `waits`: whether answers wait, so that they are made on the loop."""
        made = {
            method.name: getattr(jobs if method.row.lane is Lane.LOOP else answers, method.function)
            for method in STORE_METHODS.values()
        }
        return self._endpoints(STORE_METHODS, made, self._gates, waits=waits)

    def of_node(self, peers: Any, operators: Any) -> list[Endpoint]:
        """Return the calls of other nodes and of operators, which pass gates of their own."""
        limits = msgspec.structs.replace(self._limits, calls_max=1 << 14, bytes_in_flight_max=1 << 30)
        gates = Gates(Admission(limits), Arrivals(limits))
        out: list[Endpoint] = []
        for methods, answers in ((PEER_METHODS, peers), (CLUSTER_METHODS, operators)):
            made = {method.name: getattr(answers, method.function) for method in methods.values()}
            out += self._endpoints(methods, made, gates, waits=True)
        return out

    def _endpoints(
        self, methods: Mapping[str, Method], made: Mapping[str, Answer], gates: Gates, *, waits: bool
    ) -> list[Endpoint]:
        return [self._endpoint(method, made[name], gates, waits=waits) for name, method in methods.items()]

    def _endpoint(self, method: Method, answer: Answer, gates: Gates, *, waits: bool) -> Endpoint:
        if waits or method.row.lane is Lane.LOOP:
            answered = on_loop(method, answer)
        else:
            lane, work = self._lanes[method.row.lane], in_lane(method, answer)

            def answered(raw: bytes) -> Awaitable[bytes]:
                return lane.answer(work, raw)

        return self._guarded(method, answered, gates)

    def _guarded(self, method: Method, answered: Answered, gates: Gates) -> Endpoint:
        """Return the call: admitted, bounded in time, its errors told as statuses."""
        admission, arrivals = gates

        async def bounded(arrival: Arrival) -> bytes:
            left_s, peer, held = self._time_left(arrival), arrival.peer, 0
            if left_s is None:
                arrival.end_after(self._limits.deadline_s)
            # The listener itself ends a call at its own deadline.
            async with asyncio.timeout(self._limits.deadline_s if left_s is None else None):
                raw = await arrivals.message(peer, arrival.message)
                admission.admit(peer, len(raw), while_draining=method.row.while_draining)
                held = len(raw)
                arrival.when_left(lambda: admission.release(peer, held))
                response = await answered(raw)
            admission.hold(peer, len(response), may_refuse=not method.row.changes)
            held += len(response)
            return response

        async def guarded(arrival: Arrival) -> bytes:
            try:
                return await bounded(arrival)
            except Exception as error:  # noqa: BLE001 - told to the client
                told = self._told(method.name, error, arrival)
                # Its frames hold the message, which goes before the answer is on its way: gRPC keeps what is
                # raised, in a cycle, and that would keep them.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                raise Failed(told) from None

        return Endpoint(method, guarded)

    def _time_left(self, arrival: Arrival) -> float | None:
        left_s = arrival.left_s()
        if left_s is not None and left_s <= DEADLINE_S_MAX:
            return left_s
        if self._limits.deadline_required:
            raise InputError("this server takes no call without a deadline; set one")
        return None

    def _late(self, name: str) -> DeadlineError:
        allowed = f"the {self._limits.deadline_s:g} s that a call without a deadline may take"
        return DeadlineError(f"{name}: not done within {allowed}")

    def _told(self, name: str, error: Exception, arrival: Arrival) -> status_pb2.Status:
        """Return the status that tells of what became of a call."""
        if isinstance(error, Refused):
            self._log.debug("refused", reason=error.reason, message=str(error), peer=arrival.peer)
            return status.status(Code.UNAVAILABLE, error.reason, str(error))
        if isinstance(error, TimeoutError) and not isinstance(error, KvmetaError):
            error = self._late(name)
        if isinstance(error, KvmetaError):
            return status.of_error(error)
        self._log.fault(name, error)
        message = f"a fault of the server in {name}, {type(error).__name__}; its log says more"
        return status.status(Code.INTERNAL, status.FAULT, message)


def in_lane(method: Method, answer: Answer) -> Callable[[bytes], bytes]:
    """Return `answer`, which never waits, as a function of bytes; InputError where they are no request."""
    request = method.request

    def answered(raw: bytes) -> bytes:
        response: bytes = at_once(answer(parse(request, raw))).SerializeToString()
        return response

    return answered


def on_loop(method: Method, answer: Answer) -> Answered:
    """Return `answer` as a coroutine over bytes; InputError where they are no request."""
    request = method.request

    async def answered(raw: bytes) -> bytes:
        return (await answer(parse(request, raw))).SerializeToString()

    return answered
