"""A remote store in several processes: pickled, forked, spawned.

Whether a fork works depends on all that its process did with gRPC before, so each scenario (a function
`in_its_own_process` runs) has an interpreter of its own, and all share one server.
"""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import kvmeta
from kvmeta.store import Dataset
from tests.crash.processes import fork_ends_well, in_a_fork
from tests.crash.small import assert_holds, ids, locations, put
from tests.interpreters import ends_well
from tests.patience import HANG_S
from tests.serving import ServerProcess

pytestmark = pytest.mark.slow

HELD = 50_000  # more than a message holds: a lookup of all keeps several in flight
ONE_MESSAGE = 4096
FORKS = 7


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServerProcess(tmp_path_factory.mktemp("served") / "store") as server:
        with kvmeta.open(server.target) as store:
            store.dataset().put(ids(0, HELD), locations(ids(0, HELD)))
        yield server.target


def in_its_own_process(
    scenario: Callable[..., None], *args: str, before: str = "", **environment: str
) -> None:
    """Run `scenario(*args)` in a fresh interpreter, after the statement `before`; it must end well."""
    code = f"{before}\nimport sys\nfrom {__name__} import {scenario.__name__} as run\nrun(*sys.argv[1:])"
    ends_well([sys.executable, "-c", code, *args], 2 * HANG_S, **environment)


def holds(files: Dataset, first: int = 0, end: int = ONE_MESSAGE) -> None:
    hit = files.lookup(ids(first, end))
    assert hit.found.all()
    assert np.array_equal(hit.locations, locations(ids(first, end)))


@contextmanager
def looking_up(files: Dataset, rows: int, threads: int = 2) -> Iterator[None]:
    """Keep threads looking up; none may fail."""
    stop, failed, done = threading.Event(), [], threading.Semaphore(0)

    def work() -> None:
        try:
            while not stop.is_set():
                holds(files, 0, rows)
                done.release()
        except BaseException as error:  # noqa: BLE001 - told by the thread that asserts
            failed.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for each in workers:
        each.start()
    try:
        assert done.acquire(timeout=HANG_S)
        yield
        assert done.acquire(timeout=HANG_S), failed
    finally:
        stop.set()
    for each in workers:
        each.join(HANG_S)
        assert not each.is_alive()
    assert not failed


# ---------------------------------------------------------------- pickles


def test_a_pickled_store_and_dataset_connect_anew_with_the_same_settings(target: str) -> None:
    options = kvmeta.ClientOptions(timeout_s=17, lookup_rows=100)
    for mode in ("a", "r"):
        with kvmeta.open(target, mode, options=options) as store:
            files = pickle.loads(pickle.dumps(store.dataset()))
            copy = pickle.loads(pickle.dumps(store))
        holds(files, 0, 1000)  # the one it was pickled from is closed
        assert copy.connection.options == files._store.connection.options == options
        assert copy.mode == mode
        if mode == "r":
            with pytest.raises(kvmeta.ReadOnlyError):
                put(copy, 0, 1)
        copy.close()
        files._store.close()


def test_a_dataset_pickled_with_its_store_keeps_belonging_to_it(target: str) -> None:
    with kvmeta.open(target, "r") as store:
        copy, files = pickle.loads(pickle.dumps((store, store.dataset())))
        assert files._store is copy
        copy.close()
        with pytest.raises(kvmeta.InputError, match="closed"):
            files.lookup(ids(0, 1))


# ---------------------------------------------------------------- processes of multiprocessing


def use(files: Dataset, number: int) -> None:
    """Read, write, and read what was written: what a child does."""
    holds(files, 0, HELD)
    first = HELD + 1000 * number
    put(files._store, first, first + 1000)
    holds(files, first, first + 1000)


def children_use_an_opened_store(target: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    with kvmeta.open(target) as store:
        files = store.dataset()
        holds(files)
        children = [context.Process(target=use, args=(files, number)) for number in range(2)]
        for child in children:
            child.start()
            holds(files, 0, HELD)
        for child in children:
            child.join(HANG_S)
            assert child.exitcode == 0
        assert_holds(store, HELD, HELD + 2000)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes_can_use_a_store_that_their_parent_used(target: str, method: str) -> None:
    in_its_own_process(children_use_an_opened_store, target, method)


# ---------------------------------------------------------------- forks


def forks_while_threads_look_up(target: str) -> None:
    with kvmeta.open(target) as store:
        files = store.dataset()
        for rows in (ONE_MESSAGE, HELD):
            with looking_up(files, rows):
                for number in range(FORKS):
                    pid = in_a_fork(lambda: use(files, 3))
                    if number % 2:
                        holds(files, 0, rows)  # the parent goes on beside its child
                    fork_ends_well(pid)
        assert_holds(store, HELD + 3000, HELD + 4000)


def test_a_fork_during_lookups_of_other_threads_works_and_they_continue(target: str) -> None:
    in_its_own_process(forks_while_threads_look_up, target)


@pytest.mark.parametrize(
    "before",
    ["import grpc", "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"],
    ids=["imported", "used"],
)
def test_forks_work_even_if_grpc_was_imported_before_kvmeta(target: str, before: str) -> None:
    in_its_own_process(forks_while_threads_look_up, target, before=before)


def forks_between_the_messages_of_a_load(target: str) -> None:
    store = kvmeta.open(target, options=kvmeta.ClientOptions(in_flight=4))
    files = store.create_dataset("loaded")

    def batches() -> Iterator[Any]:
        for number in range(12):
            if number > 4:  # in the thread whose messages are under way, as a data loader's start would
                fork_ends_well(in_a_fork(lambda: use(store.dataset(), 4)))
            batch = ids(20_000 * number, 20_000 * (number + 1))
            yield batch, locations(batch)

    assert files.load(batches()) == 240_000
    assert_holds(store, 0, 240_000, dataset="loaded")
    store.drop_dataset("loaded")
    store.close()


def test_a_load_continues_when_its_batch_iterator_forks(target: str) -> None:
    in_its_own_process(forks_between_the_messages_of_a_load, target)


def forks_end_in_many_ways(target: str) -> None:
    store = kvmeta.open(target)
    files = store.dataset()

    def close() -> None:
        holds(files)
        store.close()
        find_closed()

    def fork_again() -> None:
        faulthandler.cancel_dump_traceback_later()  # the one thing here that does not survive a fork
        holds(files)
        fork_ends_well(in_a_fork(lambda: use(files, 5)))
        holds(files)

    def find_closed() -> None:
        with pytest.raises(kvmeta.InputError, match="closed"):
            holds(files)

    fork_ends_well(in_a_fork(store.close))  # without a connection of its own
    fork_ends_well(in_a_fork(close))
    fork_ends_well(in_a_fork(fork_again))
    for is_used in (False, True):
        pid = os.fork()
        if not pid:
            if is_used:
                holds(files)
            sys.exit(0)  # the whole end of an interpreter, with an inherited channel
        fork_ends_well(pid)
    holds(files)
    store.close()
    fork_ends_well(in_a_fork(find_closed))


def test_a_fork_may_close_its_store_fork_again_or_just_end(target: str) -> None:
    in_its_own_process(forks_end_in_many_ways, target)


def a_fork_without_support_is_refused(target: str) -> None:
    def child() -> None:
        with pytest.raises(kvmeta.UnsupportedError, match="GRPC_ENABLE_FORK_SUPPORT"):
            holds(files)
        with pytest.raises(kvmeta.UnsupportedError, match="spawn"):
            kvmeta.open(target)
        with pytest.raises(kvmeta.UnsupportedError, match="spawn"):
            asyncio.run(use_aio(target))

    with kvmeta.open(target) as store:
        files = store.dataset()
        fork_ends_well(in_a_fork(child))
        holds(files)


def test_a_fork_is_refused_if_grpcs_fork_support_is_off(target: str) -> None:
    in_its_own_process(a_fork_without_support_is_refused, target, GRPC_ENABLE_FORK_SUPPORT="0")


# ---------------------------------------------------------------- the asyncio SDK


async def use_aio(target: str) -> None:
    async with kvmeta.aio.open(target) as store:
        assert (await (await store.dataset()).lookup(ids(0, HELD))).found.all()


def forks_before_and_after_aio(target: str) -> None:
    with kvmeta.open(target) as store:
        files = store.dataset()
        holds(files)
        fork_ends_well(in_a_fork(lambda: asyncio.run(use_aio(target))))
        asyncio.run(use_aio(target))

        def child() -> None:
            with pytest.raises(kvmeta.UnsupportedError, match=r"kvmeta\.aio.*spawn"):
                asyncio.run(use_aio(target))

        fork_ends_well(in_a_fork(child))
        asyncio.run(use_aio(target))


def test_the_asyncio_sdk_is_refused_in_a_fork_of_a_process_that_used_it(target: str) -> None:
    in_its_own_process(forks_before_and_after_aio, target)


def a_fork_inherits_an_async_store(target: str) -> None:
    loop = asyncio.new_event_loop()
    store = kvmeta.aio.open(target)
    files = loop.run_until_complete(store.dataset())

    def child() -> None:
        own = asyncio.new_event_loop()
        with pytest.raises(kvmeta.UnsupportedError, match=r"forkserver"):
            own.run_until_complete(files.lookup(ids(0, 1)))
        own.run_until_complete(store.close())

    fork_ends_well(in_a_fork(child))
    assert loop.run_until_complete(files.lookup(ids(0, 1))).found.all()
    loop.run_until_complete(store.close())
    loop.close()


def test_an_inherited_async_store_refuses_and_closes(target: str) -> None:
    in_its_own_process(a_fork_inherits_an_async_store, target)
