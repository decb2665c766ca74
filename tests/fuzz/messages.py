"""Targets: what comes over the wire. Columns, messages of all kinds, and replies as the SDK takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import lz4.block
import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2

from kvmeta.client.catalogue import StorePrograms, describe
from kvmeta.client.options import ClientOptions
from kvmeta.client.programs import DatasetPrograms
from kvmeta.client.routing import Router
from kvmeta.engine.kernels.layout import ROW_WORDS
from kvmeta.errors import InputError, UnavailableError
from kvmeta.ids import ID, ids_from_ints
from kvmeta.location import LOCATION
from kvmeta.protocol import status
from kvmeta.protocol.columns import CODE, LZ4, PLAIN, VERSION, Column, fill, unpack, unpack_up_to
from kvmeta.protocol.messages import ColumnMessage, parse
from kvmeta.protocol.methods import CLUSTER_METHODS, METHODS, PEER_METHODS
from kvmeta.store import Scan
from kvmeta.transport.grpc import DETAILS_KEY, failure_of
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta_server.cluster.peers import rows_of
from tests.fuzz.target import Target
from tests.messages import column_of
from tests.messages import packed as pack

ROWS_MAX = 65_536
_ROWS = 10
_IDS = ids_from_ints(np.arange(_ROWS, dtype=np.uint64))
_LOCATIONS = np.zeros(_ROWS, LOCATION)
_VERSIONS = np.arange(_ROWS, dtype=np.uint64)
_STATES = np.ones(_ROWS, np.uint8)


def _column_seeds() -> list[bytes]:
    wide = np.zeros(4096, LOCATION)
    bombs = [size.to_bytes(4, "little") + lz4.block.compress(bytes(100), store_size=False)
             for size in (0, 100, ROWS_MAX * 16, ROWS_MAX * 16 + 1, 1 << 31, (1 << 32) - 1)]  # fmt: skip
    packed = [pack(column, form) for column in (_IDS, wide, _VERSIONS, _STATES) for form in (PLAIN, LZ4)]
    packed += [pb.Packed(lz4=block) for block in bombs]
    return [each.SerializeToString() for each in packed]


def _decode_column(data: bytes) -> Any:
    """Read a Packed as a column of each type."""
    try:
        packed = column_of(pb.Packed.FromString(data))
    except DecodeError:
        raise InputError("not a Packed") from None
    for dtype in (ID, LOCATION, VERSION, CODE):
        for read in (_up_to, _exactly, _into):
            try:
                column = read(packed, dtype)
            except InputError:
                continue
            assert column.nbytes <= ROWS_MAX * dtype.itemsize
    return packed


def _up_to(packed: Column, dtype: Any) -> Any:
    return unpack_up_to(packed, dtype, ROWS_MAX, "column")


def _exactly(packed: Column, dtype: Any) -> Any:
    return unpack(packed, dtype, _ROWS, "column")


def _into(packed: Column, dtype: Any) -> Any:
    out = np.empty(_ROWS, dtype)
    fill(packed, out, slice(0, _ROWS), "column")
    return out


def _kinds() -> list[type[Message]]:
    methods = [*METHODS.values(), *CLUSTER_METHODS.values(), *PEER_METHODS.values()]
    return [kind for method in methods for kind in (method.request, method.response)]


_KINDS = _kinds()
_COLUMNS = {"ids": _IDS, "locations": _LOCATIONS, "versions": _VERSIONS, "states": _STATES,
            "outcomes": _STATES, "rows": np.zeros(_ROWS, "V48")}  # fmt: skip


def _message_seeds() -> list[bytes]:
    seeds = []
    for number, kind in enumerate(_KINDS):
        names = [field.name for field in kind.DESCRIPTOR.fields]
        columns = {name: _COLUMNS[name] for name in names if name in _COLUMNS}
        if "rows" in columns and kind.DESCRIPTOR.fields_by_name["rows"].message_type is None:
            del columns["rows"]
        raw = (
            ColumnMessage.of(kind(), LZ4, **columns).SerializeToString()
            if columns
            else kind().SerializeToString()
        )
        seeds.append(bytes([number]) + raw)
    return seeds


def _decode_message(data: bytes) -> Any:
    """Parse a message of the kind that the first byte names, and read all its columns."""
    kind = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    message = parse(kind, data[1:])
    for field in kind.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is pb.Packed.DESCRIPTOR:
            unpack_up_to(value, CODE, ROWS_MAX, field.name)
            if field.name == "rows":
                rows = rows_of(value)
                assert rows.shape == (len(rows), ROW_WORDS)
    return message


def _programs() -> list[Callable[[], Any]]:
    calls = DatasetPrograms("default", ClientOptions(), ROWS_MAX)
    store = StorePrograms(ClientOptions(), Router(("server:7400",)))
    return [
        describe,
        lambda: calls.lookup(_IDS),
        lambda: calls.get(_IDS[:1]),
        lambda: calls.put(_IDS, _LOCATIONS),
        lambda: calls.insert(_IDS, _LOCATIONS),
        lambda: calls.relocate(_IDS, _LOCATIONS, _VERSIONS),
        lambda: calls.load([(_IDS, _LOCATIONS)]),
        lambda: calls.scan_page(Scan(page_rows=100, sample=1.0, tag=None, after=None, shard=(0, 1))),
        lambda: store.datasets(),
        lambda: store.stats(),
        lambda: store.verify(None),
    ]


def _decode_reply(data: bytes) -> Any:
    """Run a program of the SDK, by the first byte, whose every call is answered with the other bytes."""
    number, raw = data[:1] or b"\0", data[1:]
    if number == b"\xff":
        return failure_of(grpc.StatusCode.UNAVAILABLE, "told", ((DETAILS_KEY, raw),))
    programs = _programs()
    program = programs[number[0] % len(programs)]()
    calls = next(program)
    for _ in range(8):  # a job may be asked for again and again
        errors: list[Any] = []
        for call in calls:
            call.take(raw)
            errors.append(None)
        try:
            calls = program.send(errors)
        except StopIteration as end:
            return end.value
    raise UnavailableError("still under way")


def _reply_seeds() -> list[bytes]:
    lookup = ColumnMessage.of(
        pb.LookupResponse(), LZ4, states=_STATES, locations=_LOCATIONS, versions=_VERSIONS
    )
    write = ColumnMessage.of(
        pb.WriteResponse(), LZ4, outcomes=_STATES, locations=_LOCATIONS, versions=_VERSIONS
    )
    scan = ColumnMessage.of(
        pb.ScanResponse(cursor=bytes(16), done=True),
        PLAIN,
        ids=_IDS,
        locations=_LOCATIONS,
        versions=_VERSIONS,
    )
    job = pb.GetJobResponse(job=pb.Job(id="1", state=pb.JOB_STATE_DONE, report=pb.VerifyReport(segments=1)))
    found = pb.GetResponse(location=pb.Location(volume=1), version=1)
    described = pb.DescribeResponse(batch_rows_max=4)
    told = status.status(code_pb2.DATA_LOSS, "CORRUPTION", "x", {"path": "p", "ranges": "0-f,1-2"})
    replies = [described, lookup, found, write, write, write, write, scan,
               pb.ListDatasetsResponse(names=["default"]), pb.StatsResponse(path="p"), job]  # fmt: skip
    seeds = [bytes([number]) + reply.SerializeToString() for number, reply in enumerate(replies)]
    return [*seeds, b"\xff" + told.SerializeToString()]


TARGETS = (
    Target("columns", _column_seeds, _decode_column),
    Target("messages", _message_seeds, _decode_message),
    Target("replies", _reply_seeds, _decode_reply),
)
