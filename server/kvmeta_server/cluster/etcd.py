"""etcd's client: what the cluster needs of etcd's v3 API, over grpc.aio. All values are bytes.

    get, below          linearizable reads
    txn                 compare-and-swap: all conditions hold and all writes are made, or none
    watch               every change of a prefix, from a revision on; resumes by itself, raises Compacted
    grant, keep_alive   leases

No Python client passed TLS, watches that resume and compaction (docs/decisions/0020), so this is ours:
messages with etcd's field numbers, methods called by path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from kvmeta.errors import InputError, UnavailableError, os_errors
from kvmeta_server.cluster import etcd_rpc_pb2 as rpc
from kvmeta_server.cluster.seams import Changed, Compacted, Put, Value

CALL_S = 3.0
"""How long one call may take."""
_CALL_S_MIN = 0.1
_PAUSE_S = 0.3
_LOOK_S = 0.01
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_WITH_LEADER = (("hasleader", "true"),)  # a member that has lost the others says so, instead of nothing
_KEEPALIVE_MS = 5_000

T = TypeVar("T")


@dataclass(frozen=True)
class Tls:
    """Files for TLS to etcd: the authority's certificate, and ours with its key where etcd asks for it."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC's credentials."""
        return grpc.ssl_channel_credentials(_bytes(self.ca), _bytes(self.key), _bytes(self.cert))


class Etcd:
    """Connections to the members of an etcd cluster, `urls`; one is asked for as long as it answers."""

    def __init__(self, urls: Sequence[str], tls: Tls | None = None) -> None:
        if not urls:
            raise InputError("etcd: no URL")
        secure = {url.startswith("https://") for url in urls}
        if len(secure) > 1:
            raise InputError(f"etcd: expected all http:// or all https://, got {', '.join(urls)}")
        addresses = [_address(url) for url in urls]
        self.url = ",".join(urls)
        options = [
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),  # a peer that went away without a word is noticed
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", 64 << 20),
        ]
        if secure.pop():
            credentials = (tls or Tls()).credentials()
            self._channels = [grpc.aio.secure_channel(each, credentials, options) for each in addresses]
        else:
            self._channels = [grpc.aio.insecure_channel(each, options) for each in addresses]
        self._asked = 0  # which of them is asked first

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels))

    async def get(self, key: str) -> Value | None:
        """Return a key's value, or None."""
        values, _ = await self._range(rpc.RangeRequest(key=key.encode()))
        return values[0] if values else None

    async def below(self, prefix: str) -> tuple[list[Value], int]:
        """Return all values below a prefix, and the revision that they are of."""
        return await self._range(rpc.RangeRequest(key=prefix.encode(), range_end=_end(prefix)))

    async def txn(self, writes: Sequence[Put], *, held: dict[str, int]) -> int:
        """Make all writes if each key of `held` was last changed at that revision (0: is absent), or none.

        Returns the revision that they make, 0 where none was made.
        """
        compare = [
            rpc.Compare(
                result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key.encode(), mod_revision=revision
            )
            for key, revision in held.items()
        ]
        request = rpc.TxnRequest(compare=compare, success=[_operation(write) for write in writes])
        # Once: what a member that broke off has made would fail its own conditions at the next.
        reply = await self._call("KV/Txn", request, rpc.TxnResponse, members=1)
        return int(reply.header.revision) if reply.succeeded else 0

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Changed]]:
        """Yield all changes below a prefix after `revision`, as they come, for ever.

        Where a connection breaks it goes on at the next member, without a gap; it says so by no changes.
        Raises Compacted where that cannot be: also where etcd has not come so far, for it was set back.
        """
        while True:
            asked = await self._connected(CALL_S)
            method = self._channels[asked].stream_stream(
                "/etcdserverpb.Watch/Watch",
                request_serializer=rpc.WatchRequest.SerializeToString,
                response_deserializer=rpc.WatchResponse.FromString,
            )
            create = rpc.WatchCreateRequest(
                key=prefix.encode(), range_end=_end(prefix), start_revision=revision + 1, progress_notify=True
            )
            call: Any = method(metadata=_WITH_LEADER)  # type: ignore[call-arg]
            try:
                await call.write(rpc.WatchRequest(create_request=create))
                async for reply in call:
                    if reply.compact_revision or (reply.canceled and "compact" in reply.cancel_reason):
                        raise Compacted
                    if reply.canceled:
                        break
                    if reply.created:
                        if reply.header.revision < revision:
                            raise Compacted
                        yield []
                    changes = [_changed(event) for event in reply.events]
                    if changes:
                        revision = max(revision, changes[-1].revision)
                        yield changes
            except grpc.aio.AioRpcError:
                pass
            finally:
                call.cancel()
            self._leave(asked)
            await asyncio.sleep(_PAUSE_S)

    async def grant(self, ttl_s: int) -> int:
        """Return a new lease of `ttl_s` seconds."""
        reply = await self._call("Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_s), rpc.LeaseGrantResponse)
        if reply.error:
            raise UnavailableError(f"etcd at {self.url} grants no lease: {reply.error}")
        return int(reply.ID)

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease; return the seconds it lasts from when this was asked, 0 where it has ended."""

        async def ask(channel: grpc.aio.Channel, timeout_s: float) -> int:
            method = channel.stream_stream(
                "/etcdserverpb.Lease/LeaseKeepAlive",
                request_serializer=rpc.LeaseKeepAliveRequest.SerializeToString,
                response_deserializer=rpc.LeaseKeepAliveResponse.FromString,
            )
            call: Any = method(timeout=timeout_s, metadata=_WITH_LEADER)  # type: ignore[call-arg]
            try:
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
                reply = await call.read()
                return int(getattr(reply, "TTL", 0))  # at the stream's end there is none
            finally:
                call.cancel()

        return await self._ask(ask, len(self._channels))

    async def revoke(self, lease: int) -> None:
        """End a lease now, and with it its keys."""
        with suppress(UnavailableError):
            await self._call("Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease), rpc.LeaseRevokeResponse)

    async def _range(self, request: rpc.RangeRequest) -> tuple[list[Value], int]:
        reply = await self._call("KV/Range", request, rpc.RangeResponse)
        return [Value(kv.key.decode(), kv.value, kv.mod_revision) for kv in reply.kvs], reply.header.revision

    async def _call(self, method: str, request: Any, response: Any, members: int = 0) -> Any:
        def ask(channel: grpc.aio.Channel, timeout_s: float) -> Awaitable[Any]:
            call = channel.unary_unary(
                f"/etcdserverpb.{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            return call(request, timeout=timeout_s, metadata=_WITH_LEADER)

        return await self._ask(ask, members or len(self._channels))

    async def _ask(self, ask: Callable[[grpc.aio.Channel, float], Awaitable[T]], members: int) -> T:
        """Return what a member answers; where it is unavailable ask the next, up to `members` of them."""
        loop = asyncio.get_running_loop()
        end = loop.time() + CALL_S
        while True:
            asked = await self._connected(end - loop.time())
            try:
                return await ask(self._channels[asked], max(_CALL_S_MIN, end - loop.time()))
            except grpc.aio.AioRpcError as error:
                if error.code() in _AWAY:
                    self._leave(asked)
                members -= 1
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not members:
                    raise self._unavailable(error) from None

    async def _connected(self, patience_s: float) -> int:
        """Return a member that is connected, the one asked last if it is; any where none gets connected."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        order = [(self._asked + i) % len(self._channels) for i in range(len(self._channels))]
        while True:
            failed = 0
            for number in order:
                state = self._channels[number].get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY:
                    self._asked = number
                    return number
                failed += state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            if failed == len(order) or loop.time() >= end:
                return order[0]  # asking it tells why
            await asyncio.sleep(_LOOK_S)

    def _leave(self, number: int) -> None:
        """Ask the next member first from now on, unless somebody has left this one already."""
        if self._asked == number:
            self._asked = (number + 1) % len(self._channels)

    def _unavailable(self, error: grpc.aio.AioRpcError) -> UnavailableError:
        return UnavailableError(f"etcd at {self.url} does not answer: {error.details()}")


def _operation(write: Put) -> rpc.RequestOp:
    key = write.key.encode()
    if write.data is None:
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=write.data, lease=write.lease))


def _changed(event: rpc.Event) -> Changed:
    deleted = event.type == rpc.Event.DELETE
    return Changed(event.kv.key.decode(), None if deleted else event.kv.value, event.kv.mod_revision)


def _end(prefix: str) -> bytes:
    """Return the end of the range of keys that start with `prefix`."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


def _address(url: str) -> str:
    scheme, _, rest = url.partition("://")
    address = rest.rstrip("/")
    if scheme not in ("http", "https") or not address or "/" in address or ":" not in address:
        raise InputError(f"etcd: expected http://HOST:PORT or https://HOST:PORT, got {url!r}")
    return address


def _bytes(path: str) -> bytes | None:
    if not path:
        return None
    with os_errors("reading", path):
        return Path(path).read_bytes()
