"""What a server answers, without a network: right requests, wrong ones, and bytes that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvmeta
from kvmeta.embedded import EmbeddedStore
from kvmeta.protocol.columns import LZ4
from kvmeta.protocol.messages import parse
from kvmeta.protocol.methods import METHODS
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta_server.answers import Answers
from kvmeta_server.backend import LocalBackend, at_once
from kvmeta_server.config import Limits
from kvmeta_server.service import in_lane
from tests.messages import packed as pack

IDS = kvmeta.ids_from_ints(np.arange(8, dtype=np.uint64))
LOCATIONS = np.zeros(8, kvmeta.LOCATION)
LOCATIONS["volume"], LOCATIONS["length"] = 3, 7


class Asked:
    """Answers; requests and responses travel as bytes."""

    def __init__(self, answers: Asked) -> None:
        self.answers = answers

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        method = {method.function: method for method in METHODS.values()}.get(name)
        if method is None:
            raise AttributeError(name)

        def ask(request: Any) -> Any:
            response = at_once(getattr(self.answers, name)(parse(type(request), request.SerializeToString())))
            return method.response.FromString(response.SerializeToString())

        return ask


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    path: Path = tmp_path_factory.mktemp("answers") / "store"
    with EmbeddedStore(path) as store:
        yield Asked(Answers(LocalBackend(store), Limits(batch_rows_max=8)))


def write(operation: pb.Operation, **columns: Any) -> pb.WriteRequest:
    return pb.WriteRequest(operation=operation, **{name: pack(column) for name, column in columns.items()})


def test_an_entry_by_key_and_by_id_is_the_same(answers: Asked) -> None:
    location = pb.Location(volume=1, length=2, offset=3, checksum=4, tag=5)
    answers.put(pb.PutRequest(entry=pb.EntryName(key="a key"), location=location))
    raw = kvmeta.ids_from_keys(["a key"]).tobytes()
    got = answers.get(pb.GetRequest(entry=pb.EntryName(id=raw)))
    assert got.location == location
    assert got.version > 0
    answers.delete(pb.DeleteRequest(entry=pb.EntryName(id=raw)))
    assert not answers.get(pb.GetRequest(entry=pb.EntryName(key="a key"))).HasField("location")


def test_a_batch_is_answered_in_the_form_asked_for(answers: Asked) -> None:
    answers.write(write(pb.OPERATION_PUT, ids=IDS, locations=LOCATIONS))
    got = answers.lookup(pb.LookupRequest(ids=pack(IDS), reply_compression=LZ4))
    assert got.locations.WhichOneof("form") == "lz4"
    assert answers.lookup(pb.LookupRequest(ids=pack(IDS))).locations.plain == LOCATIONS.tobytes()


NINE = np.zeros(9, "V16")
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("write", write(pb.OPERATION_UNSPECIFIED, ids=IDS), kvmeta.InputError, "operation: expected PUT"),
    ("write", write(99, ids=IDS), kvmeta.InputError, "operation: expected PUT.*99"),
    (
        "write",
        write(pb.OPERATION_PUT, ids=IDS),
        kvmeta.InputError,
        "locations: expected 8 rows of 24 bytes, got 0",
    ),
    (
        "write",
        write(pb.OPERATION_PUT, ids=IDS, locations=LOCATIONS[:7]),
        kvmeta.InputError,
        "expected 8 rows",
    ),
    (
        "write",
        write(pb.OPERATION_RELOCATE, ids=IDS, locations=LOCATIONS),
        kvmeta.InputError,
        "versions: expected 8",
    ),
    ("write", write(pb.OPERATION_DELETE, ids=NINE), kvmeta.InputError, "ids: 144 bytes; at most 128"),
    ("lookup", pb.LookupRequest(ids=pack(NINE)), kvmeta.InputError, "split the batch"),
    (
        "lookup",
        pb.LookupRequest(ids=pb.Packed(plain=b"short")),
        kvmeta.InputError,
        "ids: 5 bytes are no multiple",
    ),
    (
        "lookup",
        pb.LookupRequest(ids=pb.Packed(lz4=b"\x10\0\0\0\xff")),
        kvmeta.InputError,
        "LZ4 block is corrupt",
    ),
    ("lookup", pb.LookupRequest(dataset="typo"), kvmeta.NotFoundError, "typo"),
    ("scan", pb.ScanRequest(after=b"short"), kvmeta.InputError, "after"),
    ("scan", pb.ScanRequest(sample=2.0), kvmeta.InputError, "sample"),
    ("scan", pb.ScanRequest(shard_index=3, shard_count=3), kvmeta.InputError, "shard"),
    ("get", pb.GetRequest(), kvmeta.InputError, "entry: expected an id or a key"),
    ("get", pb.GetRequest(entry=pb.EntryName(id=b"short")), kvmeta.InputError, "exactly 16 bytes, got 5"),
    ("put", pb.PutRequest(entry=pb.EntryName(key="k")), kvmeta.InputError, "location: missing"),
    ("create_dataset", pb.CreateDatasetRequest(name="a/b"), kvmeta.InputError, "dataset name"),
    ("create_dataset", pb.CreateDatasetRequest(name="t", ttl_s=-1), kvmeta.InputError, "ttl_s"),
    ("drop_dataset", pb.DropDatasetRequest(name="default"), kvmeta.InputError, "default"),
    ("add_volume", pb.AddVolumeRequest(uri="relative/path"), kvmeta.InputError, "absolute URI"),
    (
        "get_volumes",
        pb.GetVolumesRequest(volumes=[pb.VolumeName(number=9)]),
        kvmeta.NotFoundError,
        "volume 9",
    ),
    ("get_volumes", pb.GetVolumesRequest(volumes=[pb.VolumeName()]), kvmeta.InputError, "a number or a URI"),
    ("add_volume", pb.AddVolumeRequest(uri="s3://" + "x" * 5000), kvmeta.InputError, "at most 4096"),
    (
        "add_volume",
        pb.AddVolumeRequest(uri="s3://a/b", name="x" * 5000),
        kvmeta.InputError,
        "name: 5000 bytes",
    ),
    ("add_volume", pb.AddVolumeRequest(uri="http://["), kvmeta.InputError, "uri"),
    ("create_dataset", pb.CreateDatasetRequest(name="t", ttl_s=float("inf")), kvmeta.InputError, "ttl_s"),
    (
        "update_volume",
        pb.UpdateVolumeRequest(volume=pb.VolumeName(uri="s3://x/y")),
        kvmeta.NotFoundError,
        "s3://x/y",
    ),
]


@pytest.mark.parametrize(
    ("name", "request_", "kind", "told"), WRONG, ids=lambda each: str(each)[:30].split("\n")[0]
)
def test_a_wrong_request_is_refused_with_the_reason(
    answers: Asked, name: str, request_: Any, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        getattr(answers, name)(request_)


def test_a_refused_write_has_no_effect(answers: Asked) -> None:
    ids = kvmeta.ids_from_ints([1000, 1001])
    with pytest.raises(kvmeta.InputError):
        answers.write(write(pb.OPERATION_PUT, ids=ids, locations=LOCATIONS[:1]))
    assert not any(answers.lookup(pb.LookupRequest(ids=pack(ids))).states.plain)


def on_raw(answers: Asked, name: str) -> Callable[[bytes], bytes]:
    method = METHODS[name]
    return in_lane(method, getattr(answers.answers, method.function))


FUZZED = ("Lookup", "Write", "Scan", "Get", "Put", "Delete", "GetVolumes", "AddVolume", "UpdateVolume")
SEEDS = {
    "Lookup": pb.LookupRequest(dataset="default", ids=pack(IDS), reply_compression=LZ4),
    "Write": write(pb.OPERATION_RELOCATE, ids=IDS, locations=LOCATIONS, versions=np.ones(8, np.uint64)),
    "Scan": pb.ScanRequest(page_rows=4, sample=0.5, tag=1, after=bytes(16), shard_index=0, shard_count=2),
    "Get": pb.GetRequest(entry=pb.EntryName(id=bytes(16))),
    "Put": pb.PutRequest(entry=pb.EntryName(key="key"), location=pb.Location(volume=1, offset=1 << 60)),
    "Delete": pb.DeleteRequest(entry=pb.EntryName(key="key")),
    "GetVolumes": pb.GetVolumesRequest(volumes=[pb.VolumeName(number=1), pb.VolumeName(uri="s3://a/b")]),
    "AddVolume": pb.AddVolumeRequest(uri="s3://a/b", name="b", size_bytes=1),
    "UpdateVolume": pb.UpdateVolumeRequest(volume=pb.VolumeName(number=1), uri="s3://c/d", state=1),
}


@pytest.mark.parametrize("name", FUZZED)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_mutated_bytes_are_answered_or_refused_by_a_typed_error(
    answers: Asked, name: str, data: st.DataObject
) -> None:
    raw = bytearray(SEEDS[name].SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip" and raw:
            raw[place] ^= data.draw(st.integers(1, 255))
        elif change == "cut":
            del raw[place:]
        else:
            raw[place:place] = data.draw(st.binary(max_size=8))
    with suppress(kvmeta.KvmetaError):
        on_raw(answers, name)(bytes(raw))


@pytest.mark.parametrize("name", FUZZED)
@given(raw=st.binary(max_size=100))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_bytes_are_answered_or_refused_by_a_typed_error(answers: Asked, name: str, raw: bytes) -> None:
    with suppress(kvmeta.KvmetaError):
        on_raw(answers, name)(raw)


def test_a_volume_is_changed_wholly_or_not_at_all(answers: Asked) -> None:
    number = answers.add_volume(pb.AddVolumeRequest(uri="s3://whole/one")).volume.number
    name = pb.VolumeName(number=number)
    with pytest.raises(kvmeta.InputError, match="state: expected ONLINE, OFFLINE or RETIRED, got 99"):
        answers.update_volume(pb.UpdateVolumeRequest(volume=name, uri="s3://whole/two", state=99))
    assert answers.get_volumes(pb.GetVolumesRequest(volumes=[name])).volumes[0].uri == "s3://whole/one"
    changed = answers.update_volume(
        pb.UpdateVolumeRequest(volume=name, uri="s3://whole/two", state=pb.VOLUME_STATE_OFFLINE)
    ).volume
    assert (changed.uri, changed.state) == ("s3://whole/two", pb.VOLUME_STATE_OFFLINE)


def test_volumes_come_in_pages_that_fit(answers: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmeta_server.answers.VOLUMES_BYTES_MAX", 1)
    requests = [pb.AddVolumeRequest(uri=f"s3://page/{i}") for i in range(600)]
    added = answers.add_volumes(pb.AddVolumesRequest(volumes=requests)).volumes
    numbers = [volume.number for volume in added]
    names = [pb.VolumeName(number=number) for number in numbers]
    assert len(answers.get_volumes(pb.GetVolumesRequest(volumes=names)).volumes) == 1
    listed: list[int] = []
    done = False
    while not done:
        page = answers.list_volumes(pb.ListVolumesRequest(after=listed[-1] if listed else 100))
        listed += [volume.number for volume in page.volumes]
        assert 0 < len(page.volumes) <= 256
        done = page.done
    assert listed == list(range(101, numbers[-1] + 1))
    assert answers.list_volumes(pb.ListVolumesRequest(after=numbers[-1])).done
    with pytest.raises(kvmeta.InputError, match="at most 1000"):
        answers.add_volumes(pb.AddVolumesRequest(volumes=requests * 2))
