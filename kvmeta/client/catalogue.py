"""Programs of a store: what is asked besides batches. Datasets, volumes, jobs, figures."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvmeta.client.calls import Program, ask
from kvmeta.client.options import ClientOptions
from kvmeta.client.routing import Router
from kvmeta.errors import NotFoundError, UnavailableError
from kvmeta.protocol import records, status
from kvmeta.store import Progress, StoreStats, VerifyReport, check_dataset_name, check_ttl
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.volumes import VOLUME_MAX, NewVolume, Volume, check_state, normal_uri, unregistered

_VOLUMES_MAX = 10_000  # named in one GetVolumes: less than a megabyte
_VOLUMES_ADDED = 1_000  # in one call


def describe() -> Program[pb.DescribeResponse]:
    """Ask what the server is and accepts."""
    reply: pb.DescribeResponse = yield from ask("Describe", pb.DescribeRequest())
    if not reply.batch_rows_max:
        raise UnavailableError("the server takes batches of no rows: is it a kvmeta server?")
    return reply


class StorePrograms:
    """What a store asks besides batches."""

    def __init__(self, options: ClientOptions, router: Router) -> None:
        self._options = options
        self._router = router

    def dataset(self, name: str) -> Program[int]:
        """Return a dataset's number, 0 where the server tells none; NotFoundError if there is none."""
        reply = yield from ask("ListDatasets", pb.ListDatasetsRequest())
        known = list(reply.names)
        if name not in known:
            has = ", ".join(known)
            raise NotFoundError(f"no dataset {name!r} (there are: {has}); create_dataset makes one")
        return int(reply.numbers[known.index(name)]) if len(reply.numbers) == len(known) else 0

    def datasets(self) -> Program[list[str]]:
        """List the datasets."""
        reply = yield from ask("ListDatasets", pb.ListDatasetsRequest())
        return list(reply.names)

    def create_dataset(self, name: str, ttl_s: float | None, bottom_filter: bool) -> Program[int]:
        """Create a dataset; return its number."""
        request = pb.CreateDatasetRequest(
            name=check_dataset_name(name), ttl_s=check_ttl(ttl_s), bottom_filter=bool(bottom_filter)
        )
        return int((yield from ask("CreateDataset", request)).number)

    def drop_dataset(self, name: str) -> Program[None]:
        """Remove a dataset."""
        yield from ask("DropDataset", pb.DropDatasetRequest(name=name))

    def flush(self) -> Program[None]:
        """Write what is in memory to runs."""
        yield from ask("Flush", pb.FlushRequest())

    def stats(self) -> Program[StoreStats]:
        """Return the store's figures."""
        return records.stats((yield from ask("Stats", pb.StatsRequest())))

    def compact(self, discard_damaged: bool, progress: Progress | None) -> Program[None]:
        """Merge each dataset's runs into one: a job of one server, in a cluster of one node."""
        yield from self._job(pb.JOB_KIND_COMPACT, discard_damaged, progress, self._one())

    def verify(self, progress: Progress | None) -> Program[VerifyReport]:
        """Read every page: a job of one server, in a cluster of one node."""
        to = self._one()
        job = yield from self._job(pb.JOB_KIND_VERIFY, False, progress, to)
        reports, taken = [job.report], len(job.report.damages)
        while taken < job.report.damages_total:
            request = pb.GetJobRequest(id=job.id, damages_from=taken)
            page = (yield from ask("GetJob", request, to)).job.report
            if not page.damages:
                raise UnavailableError(
                    f"verify: the server lists {taken} of {job.report.damages_total} damages"
                )
            reports.append(page)
            taken += len(page.damages)
        return records.report(reports)

    def add_volumes(self, wanted: Sequence[NewVolume]) -> Program[list[Volume]]:
        """Register URIs."""
        if len(wanted) == 1:
            reply = yield from ask("AddVolume", _add_request(wanted[0]))
            return [records.volume(reply.volume)]
        found: list[Volume] = []
        while len(found) < len(wanted):
            some = [_add_request(each) for each in wanted[len(found) :][:_VOLUMES_ADDED]]
            reply = yield from ask("AddVolumes", pb.AddVolumesRequest(volumes=some))
            if len(reply.volumes) != len(some):
                raise UnavailableError(f"the server registered {len(reply.volumes)} of {len(some)} volumes")
            found += [records.volume(volume) for volume in reply.volumes]
        return found

    def volumes(self, names: Sequence[Any]) -> Program[list[Volume]]:
        """Return volumes by number or URI."""
        asked = [_volume_name(name) for name in names]
        found: list[Volume] = []
        while len(found) < len(asked):
            request = pb.GetVolumesRequest(volumes=asked[len(found) :][:_VOLUMES_MAX])
            reply = yield from ask("GetVolumes", request)
            if not reply.volumes:
                raise UnavailableError(f"the server returned none of {len(request.volumes)} volumes")
            found += [records.volume(volume) for volume in reply.volumes]
        return found

    def list_volumes(self) -> Program[list[Volume]]:
        """Return all volumes."""
        found: list[Volume] = []
        done = False
        while not done:
            after = int(found[-1]) if found else 0
            reply = yield from ask("ListVolumes", pb.ListVolumesRequest(after=after))
            page = [records.volume(volume) for volume in reply.volumes]
            if any(int(volume) <= after for volume in page):
                raise UnavailableError(f"the server lists a volume again after number {after}")
            found += page
            done = reply.done or not page
        return found

    def update_volume(self, volume: Any, uri: Any = None, state: str | None = None) -> Program[Volume]:
        """Change a volume's URI or state."""
        if state is not None:
            check_state(state)
        request = pb.UpdateVolumeRequest(
            volume=_volume_name(volume),
            uri=None if uri is None else normal_uri(uri),
            state=pb.VOLUME_STATE_UNSPECIFIED if state is None else records.STATE_OF[state],
        )
        reply = yield from ask("UpdateVolume", request)
        return records.volume(reply.volume)

    def _one(self) -> tuple[str, ...]:
        """Return the one server to ask for a job: in a cluster each knows its own."""
        return self._router.addresses()[:1]

    def _job(
        self, kind: pb.JobKind, discard_damaged: bool, progress: Progress | None, to: tuple[str, ...]
    ) -> Program[pb.Job]:
        start = pb.StartJobRequest(kind=kind, request_id=uuid.uuid4().hex, discard_damaged=discard_damaged)
        wait_s = self._options.job_wait_s
        job: pb.Job = (yield from ask("StartJob", start, to)).job
        while job.state == pb.JOB_STATE_RUNNING:
            if progress is not None:
                progress(job.done, job.total)
            job = (yield from ask("GetJob", pb.GetJobRequest(id=job.id, wait_s=wait_s), to)).job
        if job.state != pb.JOB_STATE_DONE:  # failed, or something that this version does not know
            raise status.error_of(job.error.reason, job.error.message, dict(job.error.metadata))
        if progress is not None:
            progress(job.total, job.total)
        return job


def _add_request(wanted: NewVolume) -> pb.AddVolumeRequest:
    return pb.AddVolumeRequest(
        uri=wanted.uri, name=wanted.name, size_bytes=wanted.size_bytes, codec=records.CODEC_OF[wanted.codec]
    )


def _volume_name(volume: Any) -> pb.VolumeName:
    if isinstance(volume, (str, Path)):
        return pb.VolumeName(uri=normal_uri(volume))
    number = int(volume)
    if not 0 < number <= VOLUME_MAX:
        raise unregistered(number)
    return pb.VolumeName(number=number)
