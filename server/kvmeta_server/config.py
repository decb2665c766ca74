"""The server's settings: defaults < kvmeta.toml < environment < flags; every error names its path.

[limits]
calls_max = 512          # KVMETA_SERVE_LIMITS_CALLS_MAX=512, --set limits.calls_max=512

docs/operating.md lists them all; a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from kvmeta.errors import InputError, os_errors

ENVIRONMENT_PREFIX = "KVMETA_SERVE_"
ROWS_MAX = 65_536
REPLICAS_MAX = 15
PARTITIONS_MAX = 65_536
_ROW_BYTES = 16 + 24 + 8
_MARGIN_BYTES = 64 << 10

_LISTEN = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^\[\]:\s]+)):(?P<port>\d{1,5})")

_SECONDS_MAX = 1_000_000  # gRPC counts milliseconds in 31 bits
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
_MessageBytes = Annotated[int, Meta(ge=1, le=1 << 30)]  # gRPC and protobuf end at 2 GiB
_Seconds = Annotated[float, Meta(ge=0, le=_SECONDS_MAX)]
_PositiveSeconds = Annotated[float, Meta(gt=0, le=_SECONDS_MAX)]

_KINDS = {  # what msgspec calls a type -> what a person would
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`str`": "text",
    "`object`": "a table",
}


class Unsaid(int):
    """A default that nobody gave: what a cluster was founded with may differ from it."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much the server takes on."""

    batch_rows_max: Annotated[int, Meta(ge=1, le=ROWS_MAX)] = ROWS_MAX
    """IDs in one message: a batch is atomic, so it is one chunk of the engine."""

    message_bytes_max: _MessageBytes = 4 << 20
    """Bytes of a request. 65,536 rows of a relocate have 3.1 MB."""

    bytes_in_flight_max: _Bytes = 64 << 20
    """Bytes of requests and of responses not yet sent. One connection may hold a quarter."""

    calls_max: _Count = 1024
    """Calls under way. One connection may hold a quarter."""

    deadline_s: _PositiveSeconds = 60.0
    """How long a call may take that brings no deadline of its own."""

    deadline_required: bool = False
    """Refuse calls without a deadline instead."""

    connection_idle_s: _Seconds = 300.0
    """After so long without a call a connection is closed; clients connect anew by themselves. 0 = never."""

    connection_age_s: _Seconds = 0.0
    """After so long a connection is closed, its calls allowed to end. 0 = never."""

    jobs_max: Annotated[int, Meta(ge=1, le=64)] = 2
    """Jobs at work."""

    drain_s: _Seconds = 20.0
    """How long calls may go on after SIGTERM."""


class Threads(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Threads that answer; 0 = as many as there are cores."""

    lookup: Annotated[int, Meta(ge=0, le=1024)] = 0
    write: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Writes wait for the disk together."""
    other: Annotated[int, Meta(ge=1, le=1024)] = 4
    """Scans, flushes, datasets, volumes."""

    @property
    def lookup_count(self) -> int:
        """Return the number of threads for lookups."""
        return self.lookup or len(os.sched_getaffinity(0))


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log on stderr."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes the server a node of a cluster."""

    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]
    """The cluster's name: one etcd may serve several. The first node to come founds it."""

    etcd: Annotated[str, Meta(min_length=1)] = "http://127.0.0.1:2379"
    """etcd's URLs, separated by commas."""

    etcd_ca: str = ""
    """The certificate of the authority that signed etcd's; for https:// URLs."""
    etcd_cert: str = ""
    """This node's certificate, where etcd asks for one."""
    etcd_key: str = ""
    """Its key."""

    node: Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9_.-]*$")] = ""
    """The node's name; by default HOST-PORT. It stays the same for as long as its data does."""

    advertise: str = ""
    """HOST:PORT under which nodes and clients reach this node; by default `listen`."""

    zone: str = ""
    """What fails together, such as a rack: replicas lie in distinct zones where there are enough."""

    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    """Its share of the partitions, relative to other nodes."""

    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)] = Unsaid(3)
    """Owners of each partition. Fixed when the cluster is founded, as are the next three."""

    write_quorum: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)] = Unsaid(2)
    """Owners that must have a write before it is acknowledged: more than half."""

    partitions: Annotated[int, Meta(ge=1, le=PARTITIONS_MAX)] = Unsaid(4096)
    """Partitions; a power of two, many times the nodes there will ever be."""

    max_skew_s: _PositiveSeconds = 60.0
    """How far clocks may be apart: rows stamped further ahead are refused."""

    repair_interval_s: _PositiveSeconds = 600.0
    """Seconds between two comparisons of replicas."""

    move_rows_s: Annotated[float, Meta(gt=0)] = 1_000_000.0
    """Rows a second that a node copies at most when partitions move to it, or exchanges in a comparison."""

    hints_bytes_max: _Bytes = 1 << 30
    """Bytes of rows kept for nodes that do not answer; what is beyond, anti-entropy brings later."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of a server."""

    data: Annotated[str, Meta(min_length=1)]
    """The store's directory; made if missing."""

    listen: str = "127.0.0.1:7400"
    """HOST:PORT; port 0 means a free one, which the log tells."""

    insecure: bool = False
    """Listen on an address that others reach, without TLS: everybody who reaches it may read and write."""

    probe: bool = False
    """Read every segment before it is used: what the device cannot read is damage then, ending no process."""

    limits: Limits = Limits()
    threads: Threads = Threads()
    log: LogSettings = LogSettings()

    cluster: ClusterSettings | None = None
    """Set where the server is a node of a cluster."""

    @property
    def host(self) -> str:
        """Return the host of `listen`, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")


_TABLES = ("limits", "threads", "log", "cluster")


def load(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any], settings: Sequence[str] = ()
) -> Config:
    """Return the settings of `file`, the environment, `settings` (KEY=VALUE) and `flags`; later ones win.

    Raises InputError with the path of what is wrong.
    """
    given = _Given()
    if file is not None:
        for key, value in _read(file).items():
            for path, each in _leaves(key, value):
                given.set(path, each, f"{file}: ")
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            given.set(_path_of(name), value, f"{name}: ")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: expected KEY=VALUE, such as limits.calls_max=512")
        given.set(key.split("."), value, "--set ")
    for key, value in flags.items():
        if value is not None:
            given.set(key.split("."), value, "--")
    if "data" not in given.tree:
        raise InputError("data: missing; say where the store is, with --data DIR")
    try:
        config = msgspec.convert(given.tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(_told(error, given)) from None
    _check(config, given)
    if config.cluster is not None and not config.cluster.advertise:
        cluster = msgspec.structs.replace(config.cluster, advertise=config.listen)
        config = msgspec.structs.replace(config, cluster=cluster)
    return config


class _Given:
    """The settings given so far, as nested tables, and by whom each was given last."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self._sources: dict[str, str] = {}

    def set(self, path: list[str], value: Any, source: str) -> None:
        """Set one setting; `source` is what an error puts before its path."""
        *tables, last = path
        tree = self.tree
        for table in tables:
            if not isinstance(tree.setdefault(table, {}), dict):
                raise InputError(f"{self.place(table)}: expected a table, got {tree[table]!r}")
            tree = tree[table]
        tree[last] = value
        self._sources[".".join(path)] = source

    def place(self, path: str) -> str:
        """Return `path` as its source names it: "kvmeta.toml: limits.calls_max", "--set limits.calls_max"."""
        below = [key for key in self._sources if key == path or key.startswith(f"{path}.")]
        return f"{self._sources[below[-1]] if below else ''}{path}"

    def value(self, path: str) -> Any:
        """Return what was given under `path`."""
        value: Any = self.tree
        for key in path.split("."):
            value = value[key]
        return value


def _read(file: Path) -> dict[str, Any]:
    with os_errors("reading", file):
        raw = file.read_bytes()
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # of its own, of the text, of a number's digits
        raise InputError(f"{file}: not TOML: {error}") from None


def _leaves(key: str, value: Any) -> list[tuple[list[str], Any]]:
    if isinstance(value, dict) and value:
        return [([key, inner], each) for inner, each in value.items()]
    return [([key], value)]


def _path_of(name: str) -> list[str]:
    """Return the path that an environment variable names: its table, if it starts with one, and its key."""
    key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
    for table in _TABLES:
        if key.startswith(f"{table}_"):
            return [table, key.removeprefix(f"{table}_")]
    return [key]


def _told(error: msgspec.ValidationError, given: _Given) -> str:
    """Return msgspec's message in our words: where it was said, what was expected, what came."""
    message, _, place = str(error).partition(" - at `$")
    path = place.rstrip("`").lstrip(".")
    if "unknown field" in message:
        path = f"{path}.{message.rsplit('`', 2)[1]}".lstrip(".")
        return f"{given.place(path)}: there is no such setting"
    expected = message.partition(", got ")[0].replace("Expected", "expected")
    for kind, ours in _KINDS.items():
        expected = expected.replace(kind, ours)
    if "enum" in message:
        table, _, key = path.partition(".")
        choices = get_args(get_type_hints(get_type_hints(Config)[table])[key])
        expected = f"expected one of {', '.join(choices)}"
    return f"{given.place(path)}: {expected}, got {given.value(path)!r}"


def _check(config: Config, given: _Given) -> None:
    listen = given.place("listen")
    parts = _LISTEN.fullmatch(config.listen)
    if parts is None or int(parts["port"]) > 65_535 or (parts["v6"] and not _is_address(parts["v6"])):
        hint = "; an IPv6 address goes in brackets: [::1]:7400" if config.listen.count(":") > 1 else ""
        raise InputError(f"{listen}: expected HOST:PORT, got {config.listen!r}{hint}")
    if not config.insecure and not _is_loopback(config.host):
        raise InputError(
            f"{listen}: {config.listen} can be reached by others, and everybody who reaches it may read and "
            "write, for there is no TLS yet; say --insecure if the network keeps strangers out"
        )
    if config.cluster is not None:
        _check_cluster(config, given)
    least = config.limits.batch_rows_max * _ROW_BYTES + _MARGIN_BYTES
    if config.limits.message_bytes_max < least:
        raise InputError(
            f"{given.place('limits.message_bytes_max')}: {config.limits.message_bytes_max} bytes are too few "
            f"for {config.limits.batch_rows_max} rows; give at least {least}, or lower limits.batch_rows_max"
        )


def _check_cluster(config: Config, given: _Given) -> None:
    cluster = config.cluster
    assert cluster is not None
    advertised = cluster.advertise or config.listen
    parts = _LISTEN.fullmatch(advertised)
    if parts is None or not 0 < int(parts["port"]) <= 65_535:
        place = given.place("cluster.advertise" if cluster.advertise else "listen")
        raise InputError(
            f"{place}: expected the HOST:PORT under which other nodes reach this one, got {advertised!r}"
        )
    if advertised.rpartition(":")[0].strip("[]") in ("0.0.0.0", "::"):
        raise InputError(
            f"{given.place('listen')}: nobody can reach {advertised}; say where others reach this node, with "
            "--advertise HOST:PORT"
        )
    if not cluster.replicas // 2 < cluster.write_quorum <= cluster.replicas:
        raise InputError(
            f"{given.place('cluster.write_quorum')}: expected more than half of {cluster.replicas} replicas "
            f"and at most all of them, got {cluster.write_quorum}"
        )
    if cluster.partitions & (cluster.partitions - 1):
        raise InputError(
            f"{given.place('cluster.partitions')}: expected a power of two, got {cluster.partitions}"
        )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
