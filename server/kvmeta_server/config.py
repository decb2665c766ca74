"""The server's settings: defaults < kvmeta.toml < environment < flags; every error names its path.

[limits]
calls_max = 512          # KVMETA_SERVE_LIMITS_CALLS_MAX=512, --set limits.calls_max=512
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kvmeta.errors import InputError, os_errors

ENVIRONMENT_PREFIX = "KVMETA_SERVE_"
ROWS_MAX = 65_536
_ROW_BYTES = 16 + 24 + 8
_MARGIN_BYTES = 64 << 10

_Count = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(ge=0)]
_PositiveSeconds = Annotated[float, Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much the server takes on."""

    batch_rows_max: Annotated[int, Meta(ge=1, le=ROWS_MAX)] = ROWS_MAX
    """IDs in one message: a batch is atomic, so it is one chunk of the engine."""

    message_bytes_max: _Count = 4 << 20
    """Bytes of a request. 65,536 rows of a relocate have 3.1 MB."""

    bytes_in_flight_max: _Count = 64 << 20
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

    jobs_max: _Count = 2
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


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of a server."""

    data: str
    """The store's directory; made if missing."""

    listen: str = "127.0.0.1:7400"
    """HOST:PORT; port 0 means a free one, which the log tells."""

    insecure: bool = False
    """Listen on an address that others reach, without TLS: everybody who reaches it may read and write."""

    limits: Limits = Limits()
    threads: Threads = Threads()
    log: LogSettings = LogSettings()

    @property
    def host(self) -> str:
        """Return the host of `listen`, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")


def load(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any], settings: Sequence[str] = ()
) -> Config:
    """Return the settings of `file`, the environment, `settings` (KEY=VALUE) and `flags`; later ones win.

    Raises InputError with the path of what is wrong.
    """
    tree: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if file is not None:
        _merge(tree, sources, _read(file), str(file))
    for name, value in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _set(tree, sources, _path_of(name), value, name)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: expected KEY=VALUE, such as limits.calls_max=512")
        _set(tree, sources, key.split("."), value, f"--set {key}")
    for key, value in flags.items():
        if value is not None:
            _set(tree, sources, key.split("."), value, f"--{key.replace('.', '-')}")
    if "data" not in tree:
        raise InputError("data: missing; say where the store is, with --data DIR")
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(_told(error, sources)) from None
    _check(config)
    return config


def _read(file: Path) -> dict[str, Any]:
    with os_errors("reading", file):
        text = file.read_text("utf-8", "replace")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not TOML: {error}") from None


def _merge(tree: dict[str, Any], sources: dict[str, str], given: Mapping[str, Any], source: str) -> None:
    for key, value in given.items():
        if isinstance(value, dict):
            for inner, each in value.items():
                _set(tree, sources, [key, inner], each, source)
        else:
            _set(tree, sources, [key], value, source)


def _set(tree: dict[str, Any], sources: dict[str, str], path: list[str], value: Any, source: str) -> None:
    *tables, last = path
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise InputError(f"{source}: {table} is no table")
        tree = inner
    tree[last] = value
    sources[".".join(path)] = source


def _path_of(name: str) -> list[str]:
    """Return the path that an environment variable names: its table, if it starts with one, and its key."""
    key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
    for table in ("limits", "threads", "log"):
        if key.startswith(f"{table}_"):
            return [table, key.removeprefix(f"{table}_")]
    return [key]


def _told(error: msgspec.ValidationError, sources: Mapping[str, str]) -> str:
    """Return msgspec's message with the path first and where it was said."""
    message, _, place = str(error).partition(" - at `$")
    path = place.rstrip("`").lstrip(".")
    if "unknown field" in message:
        unknown = message.rsplit("`", 2)[1]
        path, message = f"{path}.{unknown}".lstrip("."), "there is no such setting"
    source = sources.get(path)
    return f"{source + ': ' if source and source != f'--{path}' else ''}{path}: {message}"


def _check(config: Config) -> None:
    host, colon, port = config.listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535 or not host.strip("[]"):
        raise InputError(f"listen: expected HOST:PORT, got {config.listen!r}")
    if not config.insecure and not _is_loopback(config.host):
        raise InputError(
            f"listen: {config.listen} can be reached by others, and everybody who reaches it may read and "
            "write, for there is no TLS yet; say --insecure if the network keeps strangers out"
        )
    least = config.limits.batch_rows_max * _ROW_BYTES + _MARGIN_BYTES
    if config.limits.message_bytes_max < least:
        raise InputError(
            f"limits.message_bytes_max: {config.limits.message_bytes_max} bytes are too few for "
            f"{config.limits.batch_rows_max} rows; give at least {least}, or lower limits.batch_rows_max"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
