"""How a client talks to a server, each setting with its reason; and what a target names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from kvmeta.errors import InputError

SCHEME = "kvmeta"
DEFAULT_PORT = 7400


@dataclass(frozen=True)
class ClientOptions:
    """Settings of one client. `kvmeta.open("kvmeta://host", options=kvmeta.ClientOptions(timeout_s=5))`."""

    timeout_s: float = 30.0
    """How long one message (a part of a batch, see `lookup_rows`) may take, attempts and pauses included."""

    connect_timeout_s: float = 5.0
    """How long opening may take: shorter, so that a wrong address is told soon."""

    in_flight: int = 8
    """Messages of one call under way at once: enough to keep a server's cores busy while replies are read."""

    lookup_rows: int = 16_384
    """IDs in one lookup message. Smaller ones overlap better, larger ones cost less; answers are the same."""

    consistency: Literal["quorum", "fast"] = "quorum"
    """In a cluster: "quorum" asks as many replicas as it takes to see every acknowledged write. "fast" asks
    one, and more only for what it does not have; what it has may be an older version than others hold, even
    a deleted one: made for data that is written once."""

    failover_s: float = 5.0
    """In a cluster: how long one node may take before the next is asked, where asking twice does no harm."""

    hedge: bool = False
    """In a cluster: ask a second node when a lookup takes longer than 95 of 100 took; the first answer
    counts."""

    compression: Literal["none", "lz4"] = "none"
    """lz4 compresses columns both ways, where that is shorter: for links slower than about 2 Gbit/s. IDs do
    not shrink, locations do by half."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "connect_timeout_s", "failover_s"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise InputError(f"{name}: expected a positive number of seconds, got {value!r}")
        for name in ("in_flight", "lookup_rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: expected at least 1, got {value!r}")
        if self.consistency not in ("quorum", "fast"):
            raise InputError(f'consistency: expected "quorum" or "fast", got {self.consistency!r}')
        if self.compression not in ("none", "lz4"):
            raise InputError(f'compression: expected "none" or "lz4", got {self.compression!r}')

    @property
    def job_wait_s(self) -> float:
        """Return how long to ask a server to wait for a job's end: well below the call's own deadline."""
        return min(2.0, self.timeout_s / 2)


def addresses_of(target: str) -> tuple[str, ...]:
    """Return the "host:port" of each server in "kvmeta://host[:port],…"; else InputError."""
    if not target.startswith(f"{SCHEME}://") or "," not in target:
        return (address_of(target),)
    parts = target.removeprefix(f"{SCHEME}://").rstrip("/").split(",")
    return tuple(dict.fromkeys(address_of(f"{SCHEME}://{part}") for part in parts))


def address_of(target: str) -> str:
    """Return "host:port" of "kvmeta://host[:port]"; InputError where it is something else."""
    expected = f'{target!r}: expected "{SCHEME}://host" or "{SCHEME}://host:port"'
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{expected} ({error})") from None
    extra = parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/")
    if parts.scheme != SCHEME or not host or extra:
        raise InputError(expected)
    return f"[{host}]:{port or DEFAULT_PORT}" if ":" in host else f"{host}:{port or DEFAULT_PORT}"
