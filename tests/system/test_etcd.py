"""etcd's client against a real etcd: conditions, watches that resume, compaction, leases, mutual TLS."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

import kvmeta.operators
from kvmeta.errors import InputError, UnavailableError
from kvmeta_server.cluster.etcd import Etcd, Tls
from kvmeta_server.cluster.lease import Lease
from kvmeta_server.cluster.seams import Changed, Compacted, Put
from kvmeta_server.dev import DevEtcd, DevNode, Process, etcd_program, free_port
from tests.cluster import etcd

__all__ = ["etcd"]

pytestmark = pytest.mark.system


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def first(watch: AsyncIterator[list[Changed]]) -> list[Changed]:
    async with asyncio.timeout(20):
        return await anext(changes async for changes in watch if changes)  # none: it is connected anew


def test_a_transaction_writes_only_if_its_conditions_hold(etcd: DevEtcd) -> None:
    async def work() -> None:
        client = Etcd([etcd.url])
        assert await client.get("/cas/a") is None
        assert await client.txn([Put("/cas/a", b"1"), Put("/cas/b", b"2")], held={"/cas/a": 0})
        assert not await client.txn([Put("/cas/a", b"3"), Put("/cas/b", b"3")], held={"/cas/a": 0})
        held = await client.get("/cas/a")
        assert held is not None
        assert held.data == b"1"
        revision = await client.txn([Put("/cas/b", None)], held={"/cas/a": held.revision})
        assert revision > held.revision
        values, _ = await client.below("/cas/")
        assert [(value.key, value.data) for value in values] == [("/cas/a", b"1")]
        await client.close()

    run(work())


def test_a_watch_goes_on_after_a_restart_without_a_gap(tmp_path: Path) -> None:
    port = free_port()
    server = DevEtcd(tmp_path, port=port)

    async def work() -> None:
        nonlocal server
        client = Etcd([server.url])
        await client.txn([Put("/w/0", b"0")], held={})
        _, revision = await client.below("/w/")
        watch = client.watch("/w/", revision)
        await client.txn([Put("/w/1", b"1")], held={})
        assert [change.key for change in await first(watch)] == ["/w/1"]
        waiting = asyncio.ensure_future(first(watch))
        await asyncio.to_thread(server.stop)
        with pytest.raises(UnavailableError, match="does not answer"):
            await client.get("/w/0")
        server = await asyncio.to_thread(lambda: DevEtcd(tmp_path, port=port))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                await client.txn([Put("/w/2", b"2"), Put("/w/1", None)], held={})
                break
            except UnavailableError:
                await asyncio.sleep(0.2)
        changes = await waiting
        assert {(change.key, change.data) for change in changes} == {("/w/2", b"2"), ("/w/1", None)}
        await client.close()

    try:
        run(work())
    finally:
        server.stop()


def test_a_watch_from_a_compacted_revision_raises_compacted(etcd: DevEtcd) -> None:
    async def work() -> None:
        client = Etcd([etcd.url])
        for number in range(5):
            await client.txn([Put("/c/x", str(number).encode())], held={})
        _, revision = await client.below("/c/")
        await compact(client, revision)
        with pytest.raises(Compacted):
            await first(client.watch("/c/", revision - 4))
        await client.close()

    run(work())


async def compact(client: Etcd, revision: int) -> None:
    """Compact up to a revision; a call that the product has no use for."""
    message = b"\x08" + varint(revision) + b"\x10\x01"
    call = client._channels[0].unary_unary("/etcdserverpb.KV/Compact", None, None)
    await call(message)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_renewed_lease_lasts_and_an_ended_one_removes_its_keys(etcd: DevEtcd) -> None:
    async def work() -> None:
        client = Etcd([etcd.url])
        lease = Lease(client, 2)
        assert lease.left_s() == 0
        assert await lease.renew()
        assert 1 < lease.left_s() <= 2
        await client.txn([Put("/l/me", b"1", lease.id)], held={})
        for _ in range(3):
            await asyncio.sleep(0.8)
            assert not await lease.renew()
        assert await client.get("/l/me") is not None
        await lease.end()
        assert lease.left_s() == 0
        assert await client.get("/l/me") is None
        assert await lease.renew()
        await client.revoke(lease.id)
        assert await lease.renew()  # another
        await client.close()

    run(work())


def test_a_client_connects_with_mutual_tls(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)

    async def work(members: Members) -> None:
        client = Etcd(members.urls, Tls(made["ca"], made["cert"], made["key"]))
        await members.answer(client)
        stranger = Etcd(members.urls, Tls(made["ca"]))
        with pytest.raises(UnavailableError):
            await stranger.get("/x")
        await stranger.close()
        await client.close()

    with Members(tmp_path, ["127.0.0.1"], made) as members:
        run(work(members))


def test_clients_continue_when_any_of_three_etcd_members_dies(tmp_path: Path) -> None:
    """Over mutual TLS, by address and by name: a watch, conditions and a lease outlive the member asked."""
    made = make_certificates(tmp_path)

    async def work(members: Members) -> None:
        client = Etcd(members.urls, Tls(made["ca"], made["cert"], made["key"]))
        await members.answer(client)
        lease = await client.grant(60)
        _, revision = await client.below("/w/")
        watch = client.watch("/w/", revision)
        await client.txn([Put("/w/0", b"0", lease)], held={})
        assert [change.key for change in await first(watch)] == ["/w/0"]
        waiting = asyncio.ensure_future(first(watch))
        await asyncio.to_thread(members.processes[client._asked].stop, signal.SIGKILL)
        await members.answer(client)
        assert await client.keep_alive(lease) == 60
        assert await client.txn([Put("/w/1", b"1")], held={"/w/1": 0})
        assert [change.key for change in await waiting] == ["/w/1"]
        await client.close()

    with Members(tmp_path, ["127.0.0.1", "localhost", "localhost"], made) as members:
        run(work(members))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_one_answering_url_of_several_is_enough(tmp_path: Path, host: str) -> None:
    async def work(members: Members) -> None:
        for urls in ([f"http://{host}:{free_port()}", *members.urls], [*members.urls, "http://no.invalid:1"]):
            client = Etcd(urls)
            await members.answer(client)
            assert await client.txn([Put("/x", b"")], held={})
            await client.close()

    with Members(tmp_path, [host]) as members:
        run(work(members))


def test_a_node_joins_with_mutual_tls_while_one_etcd_member_is_away(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    with Members(tmp_path, ["localhost"], made) as members:
        port, settings = free_port(), [f"cluster.etcd_{name}={made[name]}" for name in ("ca", "cert", "key")]
        serve = [
            "serve", "--data", str(tmp_path / "n1"), "--listen", f"127.0.0.1:{port}", "--node", "n1",
            "--cluster", "secure", "--etcd", f"https://127.0.0.1:{free_port()},{members.urls[0]}",
            *(word for setting in settings for word in ("--set", setting)),
        ]  # fmt: skip
        node = DevNode("n1", port, serve, tmp_path / "n1.log", settings, tied=False)
        try:
            node.wait()
            with kvmeta.operators.open(f"kvmeta://{node.address}") as cluster:
                told = cluster.status()
            assert (told.name, told.etcd) == ("secure", True)
            assert [member.name for member in told.members] == ["n1"]
        finally:
            node.stop()


@pytest.mark.parametrize(
    "urls",
    [[], ["127.0.0.1:1"], ["http://host"], ["http://a:1", "https://b:2"], ["ftp://a:1"], ["http://a:1/x"]],
)
def test_malformed_urls_are_refused(urls: list[str]) -> None:
    async def work() -> None:
        with pytest.raises(InputError, match="etcd"):
            Etcd(urls)

    run(work())


class Members:
    """The members of an etcd cluster, one at each of `hosts`; with certificates, over mutual TLS."""

    def __init__(self, path: Path, hosts: list[str], made: dict[str, str] | None = None) -> None:
        scheme = "https" if made else "http"
        self.urls = [f"{scheme}://{host}:{free_port()}" for host in hosts]
        peers = [f"http://127.0.0.1:{free_port()}" for _ in hosts]
        tls = [] if made is None else [
            "--cert-file", made["cert"], "--key-file", made["key"], "--trusted-ca-file", made["ca"],
            "--client-cert-auth",
        ]  # fmt: skip
        self.processes = [
            Process(
                [
                    etcd_program(), "--data-dir", str(path / f"m{i}"), "--name", f"m{i}",
                    "--listen-client-urls", url.replace("localhost", "127.0.0.1"),
                    "--advertise-client-urls", url,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", ",".join(f"m{j}={each}" for j, each in enumerate(peers)), *tls,
                ],
                path / f"m{i}.log",
            )
            for i, (url, peer) in enumerate(zip(self.urls, peers, strict=True))
        ]  # fmt: skip

    async def answer(self, client: Etcd) -> None:
        """Wait until a client gets an answer."""
        end = time.monotonic() + 20
        while True:
            try:
                await client.get("/")
                return
            except UnavailableError:
                assert time.monotonic() < end, self.processes[0].said()
                await asyncio.sleep(0.2)

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stop()


def make_certificates(path: Path) -> dict[str, str]:
    """Make an authority and a certificate for 127.0.0.1 that it signed."""
    made = {name: str(path / f"{name}.pem") for name in ("ca", "ca_key", "cert", "key", "request")}
    extensions = path / "extensions"
    extensions.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    for command in (
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", made["ca_key"], "-out", made["ca"],
         "-subj", "/CN=authority", "-days", "2"],
        ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", made["key"], "-out", made["request"],
         "-subj", "/CN=node"],
        ["x509", "-req", "-in", made["request"], "-CA", made["ca"], "-CAkey", made["ca_key"],
         "-CAcreateserial", "-out", made["cert"], "-days", "2", "-extfile", str(extensions)],
    ):  # fmt: skip
        try:
            subprocess.run(["openssl", *command], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl not found")
    return made
