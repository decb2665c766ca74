"""A simulated network: calls between addresses, late, lost, doubled, out of order, or cut off one way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from kvmeta.errors import KvmetaError
from kvmeta.protocol.methods import PEER_METHODS, Method
from kvmeta.protocol.status import Told
from kvmeta.transport.failures import CallFailed, Kind
from kvmeta_server.refusal import Refused
from kvmeta_server.simulator.loop import Process

Serve = Callable[[str, Any], Awaitable[Any]]
_USUAL_S = 0.004
_TAIL_S_MAX = 8.0
REASON = "UNAVAILABLE"  # of all other errors that nodes tell each other here
_RESET = 0.8  # of the calls to a process that dies


@dataclass
class Conditions:
    """How bad it is: shares of messages that are lost, sent twice, or late by a heavy-tailed delay."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0


@dataclass
class Network:
    """The network of a simulation. `cut` holds (from, to) pairs of hosts between which nothing passes."""

    rng: random.Random
    conditions: Conditions = field(default_factory=Conditions)
    cut: set[tuple[str, str]] = field(default_factory=set)
    _listening: dict[str, list[tuple[Process, Serve]]] = field(default_factory=dict)

    def listen(self, address: str, process: Process, serve: Serve) -> None:
        """Let a process answer the calls to an address; its name is its host's.

        Of several at one address the last that lives is reached.
        """
        alive = [each for each in self._listening.get(address, []) if each[0].alive]
        self._listening[address] = [*alive, (process, serve)]

    def passes(self, source: str, target: str) -> bool:
        """Return whether a message passes, this time."""
        return (source, target) not in self.cut and self.rng.random() >= self.conditions.lost

    def delay(self) -> float:
        """Return how long a message takes."""
        if self.rng.random() < self.conditions.late:
            return min(_TAIL_S_MAX, 0.02 * self.rng.paretovariate(0.7))
        return _USUAL_S * (0.25 + self.rng.random())

    async def call(self, caller: Process, address: str, method: str, request: Any, timeout_s: float) -> Any:
        """Return what the process at an address answers; CallFailed where no answer comes."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        served: list[asyncio.Task[None]] = []

        def settle(result: Any, error: CallFailed | None) -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)

        def back(source: str, result: Any, error: CallFailed | None) -> None:
            if self.passes(source, caller.name):
                loop.call_later(self.delay(), settle, result, error, context=caller.context)

        def arrive() -> None:
            alive = [each for each in self._listening.get(address, []) if each[0].alive]
            if not alive:
                back(address, None, CallFailed(Kind.NOT_REACHED, "connection refused"))
                return
            process, serve = alive[-1]
            process.soon(begin, process, serve)

        def begin(process: Process, serve: Serve) -> None:
            served.append(process.start(work(process, serve)))

        async def work(process: Process, serve: Serve) -> None:
            def reset() -> None:  # its connections close as it is killed; where a machine dies, none does
                if self.rng.random() < _RESET:
                    back(address, None, CallFailed(Kind.LOST, "connection reset"))

            process.when_killed[reset] = None
            result, failed = None, None
            try:
                result = await serve(method, request)
            except KvmetaError as error:
                reason = error.reason if isinstance(error, Refused) else REASON
                failed = CallFailed(Kind.ANSWERED, str(error), Told(reason, error))
            finally:
                process.when_killed.pop(reset, None)
            back(process.name, result, failed)

        def give_up() -> None:
            if not answer.done():
                answer.set_exception(CallFailed(Kind.LATE, "no answer in time"))
                for task in served:  # as gRPC does at a call's deadline, wherever the server is by then
                    if self.passes(caller.name, address):
                        loop.call_later(self.delay(), task.cancel)

        doubled = method in PEER_METHODS and self.rng.random() < self.conditions.doubled
        # Sent twice, what is not repeatable would be another operation, as would a client's call.
        for _ in range(2 if doubled and PEER_METHODS[method].row.repeatable else 1):
            if self.passes(caller.name, address):
                loop.call_later(self.delay(), arrive)
        patience = loop.call_later(timeout_s, give_up)
        try:
            return await answer
        finally:
            patience.cancel()


class SimulatedWire:
    """A process's way into the network: `seams.Wire`."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def call(self, address: str, method: Method, request: bytes, timeout_s: float) -> bytes:
        """Return the answer's bytes; CallFailed where there is none."""
        reply: bytes = await self._network.call(self._process, address, method.name, request, timeout_s)
        return reply

    async def close(self) -> None:
        """Do nothing."""
