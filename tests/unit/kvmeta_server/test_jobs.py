"""Jobs: started once, asked for, ended, forgotten."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import kvmeta
from kvmeta.store import Damage, VerifyReport
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta_server import jobs as module
from kvmeta_server.jobs import Jobs
from kvmeta_server.logs import Log
from kvmeta_server.refusal import Refused
from tests.patience import HANG_S

VERIFY = pb.StartJobRequest(kind=pb.JOB_KIND_VERIFY, request_id="a")
COMPACT = pb.StartJobRequest(kind=pb.JOB_KIND_COMPACT)


class Store:
    """Compacts when it is told to; verifies at once."""

    def __init__(self, error: Exception | None = None, damages: int = 0) -> None:
        self.go = threading.Event()
        self.error = error
        self.damages = damages

    def compact(self, *, discard_damaged: bool, progress: Any) -> None:
        progress(3, 10)
        self.go.wait(HANG_S)
        if self.error is not None:
            raise self.error

    def verify(self, *, progress: Any) -> VerifyReport:
        return VerifyReport(1, 2, (Damage("/s", "default", 1, 2, 3, "flipped"),) * self.damages)


def run(store: Store, work: Any, running_max: int = 2) -> None:
    async def main() -> None:
        await work(Jobs(store, running_max, Log("text", "error")))  # type: ignore[arg-type]

    asyncio.run(main())


async def ended(jobs: Jobs, id_: str) -> pb.Job:
    asked = pb.GetJobRequest(id=id_, wait_s=10)
    while (job := (await jobs.get_job(asked)).job).state == pb.JOB_STATE_RUNNING:
        pass
    return job


def test_a_job_is_seen_from_start_to_end() -> None:
    async def work(jobs: Jobs) -> None:
        job = (await jobs.start_job(COMPACT)).job
        assert job.state == pb.JOB_STATE_RUNNING
        while not job.total:
            job = (await jobs.get_job(pb.GetJobRequest(id=job.id))).job
        assert (job.done, job.total) == (3, 10)
        store.go.set()
        assert (await ended(jobs, job.id)).state == pb.JOB_STATE_DONE

    store = Store()
    run(store, work)


def test_a_repeated_request_starts_no_second_job() -> None:
    async def work(jobs: Jobs) -> None:
        first = (await jobs.start_job(VERIFY)).job
        assert (await jobs.start_job(VERIFY)).job.id == first.id
        other = pb.StartJobRequest(kind=pb.JOB_KIND_VERIFY, request_id="b")
        assert (await jobs.start_job(other)).job.id != first.id

    run(Store(), work)


def test_a_failed_job_reports_its_error() -> None:
    for error, reason in (
        (kvmeta.CorruptionError("bad", "/s"), "CORRUPTION"),
        (ZeroDivisionError(), "STORE"),
    ):

        async def work(jobs: Jobs, reason: str = reason) -> None:
            job = await ended(jobs, (await jobs.start_job(COMPACT)).job.id)
            assert (job.state, job.error.reason) == (pb.JOB_STATE_FAILED, reason)

        store = Store(error)
        store.go.set()
        run(store, work)


def test_damages_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DAMAGES_MAX", 2)

    async def work(jobs: Jobs) -> None:
        job = await ended(jobs, (await jobs.start_job(VERIFY)).job.id)
        assert (len(job.report.damages), job.report.damages_total) == (2, 5)
        last = await jobs.get_job(pb.GetJobRequest(id=job.id, damages_from=4))
        assert len(last.job.report.damages) == 1

    run(Store(damages=5), work)


def test_more_jobs_than_allowed_are_refused() -> None:
    async def work(jobs: Jobs) -> None:
        await jobs.start_job(COMPACT)
        with pytest.raises(Refused, match="1 jobs run already"):
            await jobs.start_job(COMPACT)
        store.go.set()

    store = Store()
    run(store, work, running_max=1)


def test_an_unknown_job_is_not_found_and_an_unknown_kind_refused() -> None:
    async def work(jobs: Jobs) -> None:
        with pytest.raises(kvmeta.NotFoundError, match="no job 'x'"):
            await jobs.get_job(pb.GetJobRequest(id="x"))
        with pytest.raises(kvmeta.InputError, match="kind"):
            await jobs.start_job(pb.StartJobRequest())

    run(Store(), work)


def test_the_oldest_ended_jobs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_MAX", 3)

    async def work(jobs: Jobs) -> None:
        ids = []
        for _ in range(6):
            ids.append((await jobs.start_job(pb.StartJobRequest(kind=pb.JOB_KIND_VERIFY))).job.id)
            await ended(jobs, ids[-1])
        with pytest.raises(kvmeta.NotFoundError):
            await jobs.get_job(pb.GetJobRequest(id=ids[0]))
        assert (await ended(jobs, ids[-2])).state == pb.JOB_STATE_DONE

    run(Store(), work)
