"""Jobs: work that outlasts a call. A client starts one, asks how far it is, and may go away meanwhile."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field

from kvmeta.embedded import EmbeddedStore
from kvmeta.errors import InputError, KvmetaError, NotFoundError
from kvmeta.protocol import records, status
from kvmeta.store import VerifyReport
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta_server.logs import Log
from kvmeta_server.refusal import Refused

ENDED_MAX = 100
"""Ended jobs that are remembered."""
REQUEST_ID_CHARACTERS_MAX = 128
WAIT_S_MAX = 10.0
DAMAGES_MAX = 5_000
"""Damages in one response: about a megabyte."""


@dataclass
class _Job:
    id: str
    kind: pb.JobKind
    state: pb.JobState = pb.JOB_STATE_RUNNING
    done: int = 0
    total: int = 0
    error: KvmetaError | None = None
    report: VerifyReport | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class Jobs:
    """The jobs of one store; used from one event loop, worked on by threads."""

    def __init__(self, store: EmbeddedStore, running_max: int, log: Log) -> None:
        self._store = store
        self._running_max = running_max
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._of_request: dict[str, str] = {}

    @property
    def running(self) -> int:
        """Return the number of jobs at work."""
        return sum(job.state == pb.JOB_STATE_RUNNING for job in self._jobs.values())

    async def start_job(self, request: pb.StartJobRequest) -> pb.StartJobResponse:
        """Start a job, or return the one that this request started before."""
        if len(request.request_id) > REQUEST_ID_CHARACTERS_MAX:
            raise InputError(f"request_id: at most {REQUEST_ID_CHARACTERS_MAX} characters")
        known = self._of_request.get(request.request_id)
        if known is None:
            known = self._start(request).id
            if request.request_id:
                self._of_request[request.request_id] = known
        return pb.StartJobResponse(job=_message(self._jobs[known], 0))

    async def get_job(self, request: pb.GetJobRequest) -> pb.GetJobResponse:
        """Return a job as it is, after a wait for its end if one is wanted."""
        job = self._jobs.get(request.id)
        if job is None:
            raise NotFoundError(f"no job {request.id!r}; a server forgets its jobs when it restarts")
        if request.wait_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(job.ended.wait(), min(request.wait_s, WAIT_S_MAX))
        return pb.GetJobResponse(job=_message(job, request.damages_from))

    def _start(self, request: pb.StartJobRequest) -> _Job:
        if request.kind not in (pb.JOB_KIND_COMPACT, pb.JOB_KIND_VERIFY):
            raise InputError(f"kind: expected COMPACT or VERIFY, got {request.kind}")
        if self.running >= self._running_max:
            raise Refused(status.OVERLOADED, f"{self.running} jobs run already; try again later")
        job = _Job(uuid.uuid4().hex, request.kind)
        self._jobs[job.id] = job
        self._forget_old()
        thread = threading.Thread(
            target=self._run,
            args=(job, request.discard_damaged),
            name=f"kvmeta-job-{job.id[:8]}",
            daemon=True,
        )
        thread.start()
        self._log.info("job started", job=job.id, kind=pb.JobKind.Name(job.kind))
        return job

    def _run(self, job: _Job, discard_damaged: bool) -> None:
        error: KvmetaError | None = None
        try:
            if job.kind == pb.JOB_KIND_COMPACT:
                self._store.compact(discard_damaged=discard_damaged, progress=job.progress)
            else:
                job.report = self._store.verify(progress=job.progress)
        except KvmetaError as raised:
            error = raised
        except BaseException as raised:  # noqa: BLE001 - a job's end is told to whoever asks for it
            self._log.fault("job", raised)
            error = KvmetaError(f"a fault of the server, {type(raised).__name__}; its log says more")
        with suppress(RuntimeError):  # the server has ended meanwhile
            self._loop.call_soon_threadsafe(self._end, job, error)

    def _end(self, job: _Job, error: KvmetaError | None) -> None:
        job.error = error
        job.state = pb.JOB_STATE_FAILED if error else pb.JOB_STATE_DONE
        job.ended.set()
        told = {"error": str(error)} if error else {}
        self._log.info("job ended", job=job.id, kind=pb.JobKind.Name(job.kind), **told)

    def _forget_old(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.state != pb.JOB_STATE_RUNNING]
        for old in ended[: max(0, len(ended) - ENDED_MAX)]:
            del self._jobs[old]
        self._of_request = {request: id_ for request, id_ in self._of_request.items() if id_ in self._jobs}


def _message(job: _Job, damages_from: int) -> pb.Job:
    message = pb.Job(id=job.id, kind=job.kind, state=job.state, done=job.done, total=job.total)
    if job.error is not None:
        message.error.reason = status.reason_of(job.error)
        message.error.message = str(job.error)
        message.error.metadata.update(status.metadata_of(job.error))
    if job.report is not None and job.state == pb.JOB_STATE_DONE:
        damages = job.report.damages
        message.report.segments, message.report.pages = job.report.segments, job.report.pages
        message.report.damages_total = len(damages)
        page = damages[damages_from : damages_from + DAMAGES_MAX]
        message.report.damages.extend(records.damage_message(damage) for damage in page)
    return message
