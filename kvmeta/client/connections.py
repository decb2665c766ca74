"""Connections: who sends the calls of programs, a few at once, and sees each through, attempt by attempt.

`Connection` blocks, `AsyncConnection` awaits. What they share is what decides: programs, `Attempts`,
`Router`. Both go to one server, or to the nodes of a cluster.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TypeVar

from kvmeta.client import catalogue
from kvmeta.client.attempts import Attempts
from kvmeta.client.calls import Call, Program
from kvmeta.client.latencies import Latencies
from kvmeta.client.memory import keep_freed_memory
from kvmeta.client.options import ClientOptions, addresses_of
from kvmeta.client.routing import Router
from kvmeta.errors import InputError, KvmetaError, ReadOnlyError
from kvmeta.transport import grpc
from kvmeta.transport.failures import CallFailed
from kvmeta.v1 import kvmeta_pb2 as pb

T = TypeVar("T")
HEDGED = "Lookup"
"""The call that `ClientOptions.hedge` asks a second node for."""


class _Base:
    """What both kinds know: whom to ask, how, and whether they are closed."""

    def __init__(self, target: str, options: ClientOptions, mode: str) -> None:
        if mode not in ("a", "r"):
            raise InputError(f'mode: expected "a" or "r" for a server, got {mode!r}')
        self.target = target
        self.options = options
        self.mode = mode
        self.router = Router(addresses_of(target))
        self.programs = catalogue.StorePrograms(options, self.router)
        """What is asked besides batches."""
        self._latencies = Latencies()
        self._limits: pb.DescribeResponse | None = None
        self._closed = False
        keep_freed_memory()

    def check_open(self) -> None:
        """Raise InputError where the store was closed."""
        if self._closed:
            raise InputError(f"the connection to {self.target} is closed")

    def check_writes(self) -> None:
        """Raise ReadOnlyError where the store was opened to read."""
        if self.mode == "r":
            self.check_open()
            raise ReadOnlyError(f'{self.target} was opened with mode="r"')

    def _attempts(self, call: Call, timeout_s: float) -> Attempts:
        servers = self.router.ordered(call.to) if call.to else self.router.addresses()
        return Attempts(call, servers, timeout_s, failover_s=self.options.failover_s)

    def _pause_s(self, attempts: Attempts, failed: CallFailed) -> float:
        """Return how long to wait before the next attempt; raise the error that ends the call."""
        server = attempts.server
        try:
            return attempts.after(failed, closed=self._closed)
        finally:
            if attempts.missed:
                self.router.missed(server)

    def _is_hedged(self, call: Call, attempts: Attempts) -> bool:
        return self.options.hedge and call.method.name == HEDGED and bool(attempts.others)

    def _describe_s(self) -> float:
        return min(self.options.connect_timeout_s, self.options.timeout_s)

    def _describe(self, limits: pb.DescribeResponse) -> pb.DescribeResponse:
        self.router.describe(limits.epoch, limits.seed)
        self._limits = limits
        return limits


def _take(call: Call, attempts: Attempts, reply: bytes) -> KvmetaError | None:
    """Give a reply to its call; return the error where it is not what the protocol says."""
    try:
        call.take(reply)
    except InputError as error:
        return attempts.malformed(error)
    return None


class Connection(_Base):
    """A connection for callers that block; any thread may use it."""

    def __init__(self, target: str, options: ClientOptions, mode: str = "a") -> None:
        super().__init__(target, options, mode)
        self._transport = grpc.Blocking()

    def limits(self) -> pb.DescribeResponse:
        """Return what the server accepts; asked once."""
        if self._limits is None:
            return self._describe(self.run(catalogue.describe(), self._describe_s()))
        return self._limits

    def run(self, program: Program[T], timeout_s: float | None = None) -> T:
        """Run a program to its end and return its result; one message may take `timeout_s`."""
        errors: list[KvmetaError | None] | None = None
        while True:
            try:
                yielded = next(program) if errors is None else program.send(errors)
            except StopIteration as end:
                result: T = end.value
                return result
            errors = self._perform(iter(yielded), timeout_s or self.options.timeout_s)

    def close(self) -> None:
        """Close it. Idempotent."""
        self._closed = True
        self._transport.close()

    def _perform(self, yielded: Iterator[Call], timeout_s: float) -> list[KvmetaError | None]:
        """Send the calls, up to `in_flight` at once, until one fails; return an entry for each one sent."""
        self.check_open()
        first, second = next(yielded, None), next(yielded, None)
        if first is None:
            return []
        if second is None:
            attempts = self._attempts(first, timeout_s)
            if not self._is_hedged(first, attempts):  # blocking is quicker than what another thread ends
                return [self._finish(first, attempts, None)]
        calls = chain((first,) if second is None else (first, second), yielded)
        errors: list[KvmetaError | None] = []
        flying: deque[tuple[Call, Attempts, grpc.Flight | None]] = deque()
        try:
            for call in calls:
                if len(flying) == self.options.in_flight:
                    errors.append(self._finish(*flying.popleft()))
                    if errors[-1] is not None:
                        break
                attempts = self._attempts(call, timeout_s)
                flying.append((call, attempts, self._start(call, attempts)))
            while flying:
                errors.append(self._finish(*flying.popleft()))
        finally:
            for _, _, flight in flying:  # an interrupt: nobody waits for these any more
                if flight is not None:
                    flight.cancel()
        return errors

    def _start(self, call: Call, attempts: Attempts, server: str = "") -> grpc.Flight | None:
        """Send a call; None where it cannot be sent, which `_finish` will tell."""
        try:
            flight = self._transport.start(
                server or attempts.server, call.method, call.request, attempts.attempt_s()
            )
        except CallFailed:
            return None
        flight.when_done(attempts.ended)
        return flight

    def _finish(self, call: Call, attempts: Attempts, flight: grpc.Flight | None) -> KvmetaError | None:
        """See a call through, attempt by attempt; return the error that ended it."""
        while True:
            try:
                if flight is None:
                    reply = self._transport.call(
                        attempts.server, call.method, call.request, attempts.attempt_s()
                    )
                elif self._is_hedged(call, attempts):
                    reply = self._hedged(call, attempts, flight)
                else:
                    reply = flight.result()
            except CallFailed as failed:
                try:
                    pause_s = self._pause_s(attempts, failed)
                except KvmetaError as error:
                    return error
                time.sleep(pause_s)
                flight = None
                continue
            return _take(call, attempts, reply)

    def _hedged(self, call: Call, attempts: Attempts, flight: grpc.Flight) -> bytes:
        """Return the reply; the first of two where it takes unusually long."""
        patience_s = attempts.sent + self._latencies.unusual_s() - time.monotonic()
        try:
            reply = flight.result(max(0.0, patience_s))
        except TimeoutError:
            return self._first_of(call, attempts, flight, attempts.others[0])
        self._latencies.note(time.monotonic() - attempts.sent)
        return reply

    def _first_of(self, call: Call, attempts: Attempts, flight: grpc.Flight, other: str) -> bytes:
        sent = {flight: attempts.sent}
        second = self._start(call, attempts, other)
        if second is None:
            return flight.result()
        sent[second] = time.monotonic()
        ended = threading.Semaphore(0)
        for each in (flight, second):
            each.when_done(lambda _: ended.release())
        ended.acquire()
        winner, loser = (flight, second) if flight.done else (second, flight)
        if not winner.has_reply:  # the other may still answer
            winner, loser = loser, winner
        reply = winner.result()
        self._latencies.note(time.monotonic() - sent[winner])
        loser.cancel()
        return reply


class AsyncConnection(_Base):
    """A connection for one event loop."""

    def __init__(self, target: str, options: ClientOptions, mode: str = "a") -> None:
        super().__init__(target, options, mode)
        self._transport = grpc.Awaited()

    async def limits(self) -> pb.DescribeResponse:
        """Return what the server accepts; asked once."""
        if self._limits is None:
            return self._describe(await self.run(catalogue.describe(), self._describe_s()))
        return self._limits

    async def run(self, program: Program[T], timeout_s: float | None = None) -> T:
        """Run a program to its end and return its result; one message may take `timeout_s`."""
        errors: list[KvmetaError | None] | None = None
        while True:
            try:
                yielded = next(program) if errors is None else program.send(errors)
            except StopIteration as end:
                result: T = end.value
                return result
            errors = await self._perform(iter(yielded), timeout_s or self.options.timeout_s)

    async def close(self) -> None:
        """Close it. Idempotent."""
        self._closed = True
        await self._transport.close()

    async def _perform(self, yielded: Iterator[Call], timeout_s: float) -> list[KvmetaError | None]:
        """Send the calls, up to `in_flight` at once, until one fails; return an entry for each one sent."""
        self.check_open()
        first, second = next(yielded, None), next(yielded, None)
        if first is None:
            return []
        if second is None:
            return [await self._see_through(first, timeout_s)]
        errors: list[KvmetaError | None] = []
        flying: deque[asyncio.Task[KvmetaError | None]] = deque()
        try:
            for call in chain((first, second), yielded):
                if len(flying) == self.options.in_flight:
                    errors.append(await flying[0])
                    flying.popleft()
                    if errors[-1] is not None:
                        break
                flying.append(asyncio.create_task(self._see_through(call, timeout_s)))
                await asyncio.sleep(0)  # let it be sent before the next is encoded
            while flying:
                errors.append(await flying[0])
                flying.popleft()
        finally:
            for task in flying:  # cancelled, or an error of the caller's own: nobody waits for these any more
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)
        return errors

    async def _see_through(self, call: Call, timeout_s: float) -> KvmetaError | None:
        """See a call through, attempt by attempt; return the error that ended it."""
        attempts = self._attempts(call, timeout_s)
        while True:
            try:
                if self._is_hedged(call, attempts):
                    reply = await self._hedged(call, attempts)
                else:
                    reply = await self._send(call, attempts, attempts.server)
            except CallFailed as failed:
                try:
                    pause_s = self._pause_s(attempts, failed)
                except KvmetaError as error:
                    return error
                await asyncio.sleep(pause_s)
                continue
            return _take(call, attempts, reply)

    async def _send(self, call: Call, attempts: Attempts, server: str) -> bytes:
        return await self._transport.call(server, call.method, call.request, attempts.attempt_s())

    async def _hedged(self, call: Call, attempts: Attempts) -> bytes:
        """Return the reply; the first of two where it takes unusually long."""
        clock = asyncio.get_running_loop().time
        sent = [clock()]
        tasks = [asyncio.create_task(self._send(call, attempts, attempts.server))]
        try:
            await asyncio.wait(tasks, timeout=self._latencies.unusual_s())
            if not tasks[0].done():
                sent.append(clock())
                tasks.append(asyncio.create_task(self._send(call, attempts, attempts.others[0])))
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if all(task.exception() is not None for task in done):
                    await asyncio.wait(tasks)
            good = [task for task in tasks if task.done() and task.exception() is None]
            winner = (good or tasks)[0]
            reply = winner.result()
        finally:
            for task in tasks:
                task.cancel()
        self._latencies.note(clock() - sent[tasks.index(winner)])
        return reply
