"""Load on a kvmeta server by locust (https://locust.io), through the generated stubs of the public protocol.

    locust -f bench/load/locustfile.py --headless -u 8 -r 8 -t 10s --host 127.0.0.1:7400

Without --headless it has a page in a browser. The IDs asked for are those of a scan at the start. All of it
happens in a dataset of its own, filled first and dropped in the end, unless --dataset names another. With
--puts, that share of the calls puts fresh random IDs. One process of locust is one Python interpreter: for
more load start more (`--processes`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import grpc
import grpc.experimental.gevent as grpc_gevent
import numpy as np
from locust import User, constant, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

import kvmeta
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.v1 import kvmeta_pb2_grpc as rpc

grpc_gevent.init_gevent()

OWN = "locust-load"
POOL_ROWS = 65_536
PAGE_ROWS = 4096
TIMEOUT_S = 30
FOUND = 1


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--batch", type=int, default=4096, help="IDs of a call")
    parser.add_argument("--puts", type=float, default=0.0, help="share of the calls that put, 0 to 1")
    parser.add_argument("--dataset", default=OWN, help="the dataset; its own is made and dropped")


def _stub(environment: Environment) -> rpc.StoreServiceStub:
    channel = grpc.insecure_channel(environment.host or "127.0.0.1:7400")
    return rpc.StoreServiceStub(channel)


def _plain(column: np.ndarray) -> pb.Packed:
    return pb.Packed(plain=column.tobytes())


def _random_put(random: np.random.Generator, dataset: str, rows: int) -> pb.WriteRequest:
    ids = np.frombuffer(random.bytes(rows * kvmeta.ID.itemsize), kvmeta.ID)
    locations = np.frombuffer(random.bytes(rows * kvmeta.LOCATION.itemsize), kvmeta.LOCATION)
    return pb.WriteRequest(
        dataset=dataset, operation=pb.OPERATION_PUT, ids=_plain(ids), locations=_plain(locations)
    )


@events.test_start.add_listener
def _fill(environment: Environment, **_: Any) -> None:
    """Make and fill the dataset; with several processes, the one that leads them does."""
    dataset = environment.parsed_options.dataset
    if dataset != OWN or isinstance(environment.runner, WorkerRunner):
        return
    stub, random = _stub(environment), np.random.default_rng()
    try:
        stub.CreateDataset(pb.CreateDatasetRequest(name=OWN), timeout=TIMEOUT_S)
    except grpc.RpcError:  # left over from a run that was cut off
        stub.DropDataset(pb.DropDatasetRequest(name=OWN), timeout=TIMEOUT_S)
        stub.CreateDataset(pb.CreateDatasetRequest(name=OWN), timeout=TIMEOUT_S)
    for _row in range(0, POOL_ROWS, PAGE_ROWS):
        stub.Write(_random_put(random, OWN, PAGE_ROWS), timeout=TIMEOUT_S)


@events.test_stop.add_listener
def _drop(environment: Environment, **_: Any) -> None:
    if environment.parsed_options.dataset == OWN and not isinstance(environment.runner, WorkerRunner):
        _stub(environment).DropDataset(pb.DropDatasetRequest(name=OWN), timeout=TIMEOUT_S)


class Caller(User):
    """One caller that never pauses."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect and scan for the IDs to ask for."""
        options = self.environment.parsed_options
        self._batch, self._puts, self._dataset = options.batch, options.puts, options.dataset
        self._random = np.random.default_rng()
        self._stub = _stub(self.environment)
        self._pool = self._scanned()

    @task
    def call(self) -> None:
        """Look a batch up, or put one."""
        if self._random.random() < self._puts:
            request = _random_put(self._random, self._dataset, self._batch)
            self._timed("Write", lambda: self._stub.Write(request, timeout=TIMEOUT_S), lambda _: True)
            return
        ids = self._pool[self._random.integers(0, len(self._pool), self._batch)]
        wanted = pb.LookupRequest(dataset=self._dataset, ids=_plain(ids))
        self._timed(
            "Lookup",
            lambda: self._stub.Lookup(wanted, timeout=TIMEOUT_S),
            lambda reply: bool((np.frombuffer(reply.states.plain, np.uint8) == FOUND).all()),
        )

    def _timed(self, name: str, call: Callable[[], Any], right: Callable[[Any], bool]) -> None:
        """Make a call and tell locust how long it took and whether its answer is right."""
        start, reply, error = time.perf_counter(), None, None
        try:
            reply = call()
            if not right(reply):
                error = AssertionError("an ID was not found")
        except grpc.RpcError as failed:
            error = failed
        self.environment.events.request.fire(
            request_type="grpc", name=name, response_time=(time.perf_counter() - start) * 1e3,
            response_length=reply.ByteSize() if reply is not None else 0, exception=error, context={},
        )  # fmt: skip

    def _scanned(self) -> np.ndarray:
        pages, rows, after = [], 0, b""
        deadline = time.monotonic() + TIMEOUT_S
        while rows < POOL_ROWS:
            request = pb.ScanRequest(dataset=self._dataset, page_rows=PAGE_ROWS, after=after)
            try:
                page = self._stub.Scan(request, timeout=TIMEOUT_S)
            except grpc.RpcError:  # the leading process has not made the dataset yet
                if time.monotonic() > deadline:
                    raise
                gevent.sleep(0.2)
                continue
            pages.append(np.frombuffer(page.ids.plain, kvmeta.ID))
            rows, after = rows + len(pages[-1]), page.cursor
            if page.done:
                break
        if not rows:
            raise RuntimeError(f"dataset {self._dataset} has no entries to ask for")
        return np.concatenate(pages)
