"""Target: the server's settings, as a file, as environment variables and as KEY=VALUE."""

from __future__ import annotations

from typing import Any

from kvmeta.errors import InputError
from kvmeta_server import config
from tests.fuzz.target import Target, scratch

_FILES = (
    'data = "d"\nlisten = "127.0.0.1:1"\ninsecure = true\n',
    "[limits]\ncalls_max = 1\ndrain_s = 1.5\ndeadline_required = false\n[threads]\nlookup = 0\n",
    '[log]\nformat = "json"\nlevel = "debug"\n',
    '[cluster]\nname = "prod"\netcd = "http://a:1,http://b:2"\nweight = 2.5\npartitions = 64\nreplicas = 3\n',
    'listen = "[::1]:7400"\nlimits = {batch_rows_max = 10, message_bytes_max = 100000}\n',
    "a.b.c = [1, 2, {x = 1979-05-27T07:32:00Z}]\n[[limits]]\n",
)
_LINES = (
    b"limits.calls_max=512\nKVMETA_SERVE_LIMITS_DRAIN_S=3\nKVMETA_SERVE_LISTEN=[::1]:5\n",
    b"cluster.name=x\ncluster.advertise=h:1\nKVMETA_SERVE_CLUSTER_WEIGHT=nan\n",
    b"log.level=info\nthreads.write=1e3\n=\na=b=c\ndata.x=1\nKVMETA_SERVE_=1\n",
)


def _decode(data: bytes) -> Any:
    """Load a file, or after a first byte 0 lines of KEY=VALUE, those of the environment by their prefix."""
    if data[:1] != b"\0":
        file = scratch() / "kvmeta.toml"
        file.write_bytes(data)
        return config.load(file, {}, {"data": "d"})
    try:
        lines = data[1:].decode().splitlines()
    except UnicodeDecodeError:
        raise InputError("no text") from None
    named = [line for line in lines if line.startswith(config.ENVIRONMENT_PREFIX)]
    environment = {name: value for name, _, value in (line.partition("=") for line in named)}
    return config.load(None, environment, {"data": "d"}, [line for line in lines if line not in named])


TARGETS = (Target("config", lambda: [*(f.encode() for f in _FILES), *(b"\0" + x for x in _LINES)], _decode),)
