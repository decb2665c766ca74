"""What docs/protocol.md publishes is what the code does; what protocol-v1.binpb froze is still there."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2, status_pb2
from google.rpc.code_pb2 import Code

import kvmeta
from kvmeta.errors import NotFoundError
from kvmeta.protocol import codes, status
from kvmeta.protocol.columns import CODE, LZ4, VERSION, unpack
from kvmeta.protocol.methods import CLUSTER_METHODS, METHODS, PEER_METHODS, STORE_METHODS, Method
from kvmeta.store import CURSOR_BYTES
from kvmeta.transport.grpc import DETAILS_KEY
from kvmeta.v1 import kvmeta_pb2 as pb
from kvmeta.version import COUNTER_SHIFT, MS_SHIFT, SLOT_SHIFT, TOMBSTONE
from kvmeta_server import answers, config, jobs
from protos import table
from tests.messages import column_of
from tests.messages import packed as pack

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
WORDS = " ".join(PAGE.split())
FROZEN = ROOT / "tests" / "fixtures" / "protocol-v1.binpb"


def section(heading: str) -> str:
    """Return the text under a heading, up to the next of its rank or a higher one."""
    rank = heading.index(" ")
    return re.split(rf"\n#{{1,{rank}}} ", PAGE.split(f"\n{heading}\n", 1)[1])[0]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the first table under a heading, its head left out."""
    table = re.search(r"(?:^\|.*\n)+", section(heading), re.MULTILINE)
    assert table is not None
    lines = [line.strip("|").split("|") for line in table[0].splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def example(start: str) -> bytes:
    """Return the bytes of the indented block that begins with `start`; its remarks follow two spaces."""
    block = re.search(rf"^    {start}.*\n(?:^    .*\n)*", PAGE, re.MULTILINE)
    assert block is not None
    parts = [re.split(" {2,}", line.strip())[0] for line in block[0].splitlines()]
    return bytes.fromhex("".join(part for part in parts if re.fullmatch("[0-9a-f ]+", part)))


# Columns


def test_the_code_sends_the_request_of_the_worked_example() -> None:
    request = pb.LookupRequest(ids=pack(kvmeta.ids_from_ints([1, 2])))
    assert request.SerializeToString() == example("12 22")


def test_the_response_of_the_worked_example_decodes_as_the_page_says() -> None:
    locations = np.zeros(2, kvmeta.LOCATION)
    locations[0] = (1, 100, 512, 0x11111111, 7)
    reply = pb.LookupResponse.FromString(example("0a 04"))
    assert unpack(column_of(reply.states), CODE, 2, "states").tolist() == [codes.State.FOUND, 0]
    assert (unpack(column_of(reply.locations), kvmeta.LOCATION, 2, "locations") == locations).all()
    assert unpack(column_of(reply.versions), VERSION, 2, "versions").tolist() == [0x18ACA78D1A000000, 0]


def test_the_code_reads_and_writes_the_lz4_example() -> None:
    states = np.zeros(64, np.uint8)
    packed = pb.Packed.FromString(example("12 0f"))
    assert packed.WhichOneof("form") == "lz4"
    assert (unpack(column_of(packed), CODE, 64, "states") == states).all()
    assert pack(states, LZ4).WhichOneof("form") == "lz4"


def test_the_published_sizes_and_offsets_of_columns_are_right() -> None:
    sizes = {
        name: int(size) for name, size in re.findall(r"^\| `(\w+)` \| (\d+) \|", section("## Columns"), re.M)
    }
    itemsizes = {"ids": 16, "locations": kvmeta.LOCATION.itemsize, "versions": VERSION.itemsize}
    assert sizes == {**itemsizes, "states": CODE.itemsize, "outcomes": CODE.itemsize}
    fields = {
        row[1].split()[0]: (int(row[0]), f"<{row[1].split()[1]}") for row in rows("### Location: 24 bytes")
    }
    known = {
        name: (kvmeta.LOCATION.fields[name][1], kvmeta.LOCATION[name].str) for name in kvmeta.LOCATION.names
    }
    assert fields == known


def test_the_published_bits_of_a_version_are_right() -> None:
    lowest = {
        row[1].split()[0].strip(":;"): int(re.findall(r"\d+", row[0])[-1]) for row in rows("### Version: u8")
    }
    assert lowest == {
        "milliseconds": MS_SHIFT,
        "counter": COUNTER_SHIFT,
        "node": SLOT_SHIFT,
        "tombstone": TOMBSTONE.bit_length() - 1,
        "move": 0,
    }
    version = 0x18ACA78D1A000000
    assert f"0x{version:016X}" in PAGE
    assert version.to_bytes(8, "little").hex() in PAGE
    moment = datetime.fromtimestamp(kvmeta.split_version(version).unix_ms / 1000, UTC)
    assert moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") in PAGE


def test_the_published_codes_of_states_and_outcomes_are_right() -> None:
    states = {int(row[0]): re.split(r"[:;]", row[1])[0] for row in rows("### Codes")}
    assert states == {int(state): state.name.lower() for state in codes.State if state < codes.State.FENCED}
    outcomes = dict(re.findall(r"^\| (\d) \| x? ?\| x? ?\| ([a-z ]*[a-z])", PAGE, re.MULTILINE))
    words = {str(int(each)): each.name.lower() for each in kvmeta.Outcome if each}
    beyond = {
        str(int(codes.Outcome.EXISTS)): "exists",
        str(int(codes.Outcome.UNACKNOWLEDGED)): "not acknowledged",
    }
    assert outcomes == {"0": "took effect", **words, **beyond}


def test_the_published_vectors_of_keys_hold() -> None:
    vectors = rows("## Keys and IDs")
    assert len(vectors) == 3
    for key, id_hex in vectors:
        text = "" if key == "(empty)" else key.strip("`")
        assert kvmeta.ids_to_hex(kvmeta.ids_from_keys([text])) == [id_hex.strip("`")]


def test_the_limits_are_the_servers() -> None:
    limits = config.Limits()
    assert f"{limits.batch_rows_max:,} IDs in a Lookup or Write" in PAGE
    assert f"{limits.message_bytes_max >> 20} MiB ({limits.message_bytes_max:,} bytes)" in PAGE
    assert f"{limits.calls_max:,} and {limits.bytes_in_flight_max >> 20} MiB" in PAGE
    assert f"ended after {limits.deadline_s:g} s" in WORDS
    assert f"no call for {limits.connection_idle_s:g} s" in WORDS
    assert f"(at most {jobs.WAIT_S_MAX:g};" in WORDS
    assert f"by pages of {jobs.DAMAGES_MAX:,}:" in WORDS
    assert f"beyond {jobs.ENDED_MAX}." in WORDS
    assert f"as many as fit {answers.VOLUMES_BYTES_MAX >> 20} MiB" in WORDS
    assert f"It is {CURSOR_BYTES} bytes:" in WORDS


# Calls


def test_the_table_of_calls_on_the_page_is_up_to_date() -> None:
    assert table.written(PAGE) == PAGE, "make protos writes it"
    assert [row[0].strip("`") for row in rows("## Calls")] == list(STORE_METHODS)


def may_repeat(method: Method, request: Any) -> bool:
    return method.may_repeat(request)


def test_the_page_says_which_requests_may_be_repeated() -> None:
    write, update, start = (STORE_METHODS[name] for name in ("Write", "UpdateVolume", "StartJob"))
    said = {row[0].strip("`"): row[2] for row in rows("## Calls")}
    for operation in ("PUT", "DELETE", "INSERT", "RELOCATE"):
        request = pb.WriteRequest(operation=pb.Operation.Value(f"OPERATION_{operation}"))
        assert may_repeat(write, request) == (operation in said["Write"]), operation
    by_uri, by_number = pb.VolumeName(uri="s3://a/b"), pb.VolumeName(number=1)
    assert said["UpdateVolume"] == "if it names the volume by number or changes no URI"
    assert may_repeat(update, pb.UpdateVolumeRequest(volume=by_number, uri="s3://c/d"))
    assert may_repeat(update, pb.UpdateVolumeRequest(volume=by_uri, state=pb.VOLUME_STATE_OFFLINE))
    assert not may_repeat(update, pb.UpdateVolumeRequest(volume=by_uri, uri="s3://c/d"))
    assert said["StartJob"] == "with a `request_id`"
    assert may_repeat(start, pb.StartJobRequest(request_id="x"))
    assert not may_repeat(start, pb.StartJobRequest())


@pytest.mark.parametrize(
    "methods", [STORE_METHODS, CLUSTER_METHODS, PEER_METHODS], ids=["store", "cluster", "peer"]
)
def test_every_call_of_the_proto_files_has_a_row(methods: dict[str, Method]) -> None:
    (service,) = {method.described.containing_service for method in methods.values()}
    assert list(methods) == [each.name for each in service.methods]


def test_a_quick_call_changes_nothing_and_may_be_repeated() -> None:
    for method in METHODS.values():
        if method.row.quick:
            assert not method.row.changes, method.name
            assert may_repeat(method, method.request()), method.name


# Errors


def published_errors() -> dict[str, list[str]]:
    return {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in rows("## Errors")}


def test_every_reason_is_on_the_page_with_its_status() -> None:
    codes = {reason: Code.Name(code) for _, code, reason in status.TABLE}
    codes |= dict.fromkeys(status.NOT_STARTED, "UNAVAILABLE")
    codes[status.FAULT] = "INTERNAL"
    published = published_errors()
    assert {reason: cells[0] for reason, cells in published.items()} == codes
    assert set(published) == status.REASONS


def test_the_page_lists_the_reasons_for_retrying_any_call() -> None:
    published = published_errors()
    assert {
        reason for reason, cells in published.items() if cells[2].startswith("any call")
    } == status.NOT_STARTED


def test_the_code_sends_the_example_of_error_details() -> None:
    raw = example("08 05")
    assert status.of_error(NotFoundError("no such job")).SerializeToString() == raw
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(raw).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("NOT_FOUND", status.DOMAIN)
    assert DETAILS_KEY in PAGE


# What is frozen


def frozen() -> FileDescriptorProto:
    files = descriptor_pb2.FileDescriptorSet.FromString(FROZEN.read_bytes()).file
    assert [file.name for file in files] == [pb.DESCRIPTOR.name]
    return files[0]


def now() -> FileDescriptorProto:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return file


def promises(file: FileDescriptorProto) -> set[tuple[Any, ...]]:
    """Return every name, number and type that a client may rely on."""
    found: set[tuple[Any, ...]] = {("package", file.package)}

    def enum(each: descriptor_pb2.EnumDescriptorProto, scope: str) -> None:
        found.update((f"{scope}.{each.name}", value.name, value.number) for value in each.value)

    def message(each: descriptor_pb2.DescriptorProto, scope: str) -> None:
        name = f"{scope}.{each.name}"
        found.add(("message", name))
        for field in each.field:
            oneof = each.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            kind = (field.type, field.type_name, field.label, field.proto3_optional, oneof)
            found.add((name, field.name, field.number, *kind))
        for inner in each.nested_type:
            message(inner, name)
        for inner_enum in each.enum_type:
            enum(inner_enum, name)

    for each in file.message_type:
        message(each, file.package)
    for each_enum in file.enum_type:
        enum(each_enum, file.package)
    for service in file.service:
        for call in service.method:
            streams = (call.client_streaming, call.server_streaming)
            found.add((service.name, call.name, call.input_type, call.output_type, *streams))
    return found


def test_everything_frozen_is_still_in_the_generated_code() -> None:
    missing = promises(frozen()) - promises(now())
    assert not missing


def test_a_changed_number_or_a_lost_call_breaks_the_promise() -> None:
    changed = frozen()
    next(each for each in changed.message_type if each.field).field[0].number += 100
    assert promises(frozen()) - promises(changed)
    lost = frozen()
    del lost.service[0].method[0]
    assert promises(frozen()) - promises(lost)


def test_the_frozen_image_holds_no_source() -> None:
    assert not frozen().HasField("source_code_info")


@pytest.mark.parametrize("name", ["kvmeta_pb2.py", "kvmeta_pb2_grpc.py"])
def test_generated_code_works_with_the_oldest_runtime_that_is_allowed(name: str) -> None:
    text = (ROOT / "kvmeta" / "v1" / name).read_text()
    demanded = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r"Protobuf Python Version: (\S+)|GRPC_GENERATED_VERSION = '(\S+)'", text)
    oldest = next(filter(None, version))
    assert re.search(rf'"(?:protobuf|grpcio)>={re.escape(oldest.removesuffix(".0"))}[",]', demanded)


def test_the_node_clients_packages_are_pinned_and_name_no_registry() -> None:
    folder = ROOT / "tests" / "node"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    packages = [package for name, package in locked.items() if name]
    assert all("integrity" in package and "resolved" not in package for package in packages)
