"""Who is who: nodes, histories of the map and datasets cannot be mistaken for one another, on a real etcd.

Each test is what an adversary did with real processes, and must not come to more than it says.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta.client import routing
from kvmeta.errors import InputError, NotFoundError, StoreLockedError, UnavailableError
from kvmeta_server.cluster import membership
from kvmeta_server.dev import DevEtcd, free_port
from tests.cluster import LocalCluster, etcd, local_cluster
from tests.system.clusters import open_at, places, some_ids, three, until

pytestmark = pytest.mark.system
__all__ = ["etcd", "three"]  # fixtures
N = 2_000
T = TypeVar("T")


class OwnEtcd:
    """An etcd that can be set back to what it was, or emptied, under the same URL."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._port = free_port()
        self.server = DevEtcd(path, port=self._port)
        self.url = self.server.url

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server = DevEtcd(self._path, port=self._port)

    def save(self) -> None:
        """Keep what it holds now."""
        self.stop()
        shutil.rmtree(self._path / "saved", ignore_errors=True)
        shutil.copytree(self._path / "etcd", self._path / "saved")
        self.start()

    def restore(self) -> None:
        """Go back to what was kept."""
        self.stop()
        shutil.rmtree(self._path / "etcd")
        shutil.copytree(self._path / "saved", self._path / "etcd")
        self.start()

    def empty(self) -> None:
        """Lose everything."""
        self.stop()
        shutil.rmtree(self._path / "etcd")
        self.start()


@contextmanager
def cluster_of_its_own(path: Path, nodes: int = 3) -> Iterator[tuple[LocalCluster, OwnEtcd]]:
    etcd = OwnEtcd(path / "etcd")
    try:
        with local_cluster(path, etcd, nodes) as cluster:  # type: ignore[arg-type]
            yield cluster, etcd
    finally:
        etcd.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[LocalCluster, OwnEtcd]]:
    with cluster_of_its_own(tmp_path) as made:
        yield made


def recovered(cluster: LocalCluster, name: str) -> kvmeta.operators.Recovery:
    """Let a node recover the cluster, as it says that it will."""
    with kvmeta.operators.open(f"kvmeta://{cluster.nodes[name].address}") as opened:
        plan = opened.recover()
        assert plan.reason
        assert not plan.done
        return opened.recover(plan.plan)


def all_believe(cluster: LocalCluster) -> bool:
    up = [node.node.membership for node in cluster.nodes.values() if not node.gone]
    return all(not each.refusal and asked(cluster, each.lease_left_s) > 0 for each in up)


def asked(cluster: LocalCluster, question: Callable[..., T], *about: Any) -> T:
    """Return what a node answers on its event loop."""

    async def ask() -> T:
        return question(*about)

    return cluster.run(ask())


# 1. One node counted twice


def test_a_node_is_refused_at_the_address_of_one_that_is_up(three: LocalCluster) -> None:
    three.stop("n3")
    with pytest.raises(InputError, match=r"knows .* as node 'n1', which is up"):
        three.start("n3", advertise=three.nodes["n1"].address)
    three.start("n3")
    three.settle()


def test_the_address_of_a_dead_node_is_taken_from_it(three: LocalCluster) -> None:
    """No two members have it, nobody counts the dead one's acknowledgements, and it can be removed."""
    with open_at(three, "n1") as store:
        store.dataset().put(some_ids(N), places(N))
    address = three.nodes["n2"].address
    three.kill("n2")
    three.stop("n3")
    three.start("n3", advertise=address)
    members = {member.name: member for member in three.nodes["n1"].node.membership.current.members}
    assert (members["n2"].address, members["n3"].address) == ("", address)
    node = three.nodes["n1"].node
    until(lambda: not node.peers.likely(members["n2"].slot), "n2 away")
    with kvmeta.operators.open(f"kvmeta://{three.nodes['n1'].address}") as opened:
        told = {member.name: member for member in opened.status().members}
        assert not told["n2"].answered


def test_a_request_for_another_node_is_refused(three: LocalCluster) -> None:
    """Whoever still has an old map asks the wrong node: that one is none of the owners, and says so."""
    first, second = three.nodes["n1"].node, three.nodes["n2"].node
    wrong = three.nodes["n3"].node.membership.current.by_slot[2]
    held = first.membership.current.by_slot[1]
    first.membership.current.by_slot[1] = type(held)(**{**vars(held), "address": wrong.address})
    until(lambda: not first.peers.likely(1), "the wrong node refuses")
    assert second.peers.likely(0)
    first.membership.current.by_slot[1] = held
    until(lambda: first.peers.likely(1), "the right node answers")


# 2. Another history of the map


def test_an_etcd_set_back_to_an_older_state_is_not_believed_and_recovers(
    own: tuple[LocalCluster, OwnEtcd],
) -> None:
    cluster, etcd = own
    with open_at(cluster) as store:
        first = store.volumes.add("file:///vol/one")
        store.create_dataset("old")
        store.dataset().put(some_ids(N), places(N))
    etcd.save()
    until(lambda: all_believe(cluster), "etcd is back")
    cluster.start("n4")
    cluster.settle()
    with open_at(cluster) as store:
        second = store.volumes.add("file:///vol/two")
        new = store.create_dataset("new")
        new.put(some_ids(N), places(N, volume=int(second)))
        store.drop_dataset("old")
    etcd.restore()
    nodes = [node.node for node in cluster.nodes.values()]
    until(lambda: all(node.membership.refusal for node in nodes), "all notice")
    assert all("cluster recover" in node.membership.refusal for node in nodes)
    cluster.stop("n3")
    cluster.start("n3")  # with what it knows
    until(lambda: cluster.nodes["n1"].node.peers.likely(2), "n3 answers the others")
    with open_at(cluster) as store:
        assert store.dataset("new").lookup(some_ids(N)).found.all()
        assert store.dataset().lookup(some_ids(N)).found.all()
        store.dataset().put(some_ids(10, N), places(10))
        for change in (
            lambda: store.create_dataset("another"),
            lambda: store.drop_dataset("new"),
            lambda: store.volumes.add("file:///vol/other"),
            lambda: store.volumes.set_state(1, "offline"),
        ):
            with pytest.raises(UnavailableError, match="cluster recover"):
                change()
        assert store.volumes.get(int(second)).uri == "file:///vol/two"
    with kvmeta.operators.open(cluster.target) as opened:
        assert "an older map" in opened.status().refusal
        with pytest.raises(UnavailableError, match="cluster recover"):
            opened.set_weight("n1", 2.0)
    told = recovered(cluster, "n1")
    assert told.done
    assert (told.members, told.strangers, told.silent) == (("n1", "n2", "n3", "n4"), (), ())
    assert told.datasets_back == ("new@2",)
    assert told.datasets_gone == ("old@1",)
    until(lambda: all_believe(cluster), "all believe etcd again")
    cluster.settle()
    with open_at(cluster) as store:
        assert store.datasets() == ["default", "new"]
        assert store.dataset("new").lookup(some_ids(N)).found.all()
        assert [int(v) for v in store.volumes.add(["file:///vol/other", "file:///vol/two"])] == [
            3,
            int(second),
        ]
        assert store.volumes.get(int(first)).uri == "file:///vol/one"
        assert store.create_dataset("third").lookup(some_ids(1)).found.sum() == 0
        store.drop_dataset("third")


# 3. etcd comes back empty


def test_an_emptied_etcd_is_an_outage_and_founds_no_second_cluster(
    own: tuple[LocalCluster, OwnEtcd],
) -> None:
    cluster, etcd = own
    with open_at(cluster) as store:
        one = store.volumes.add("file:///vol/one")
        store.create_dataset("photos").put(some_ids(N), places(N))
    etcd.empty()
    nodes = [node.node for node in cluster.nodes.values()]
    until(lambda: all(node.membership.refusal for node in nodes), "all notice")
    until(lambda: cluster.run(nodes[0].membership.read("id")), "the cluster's ID in the empty etcd")
    with open_at(cluster) as store:
        with pytest.raises(UnavailableError, match="no map of cluster"):
            store.create_dataset("other")
        assert store.dataset("photos").lookup(some_ids(N)).found.all()
        assert store.datasets() == ["default", "photos"]
    with pytest.raises(UnavailableError, match="has lost cluster"):
        cluster.start("n4")
    told = recovered(cluster, "n2")
    assert (told.epoch_there, told.datasets_back, told.volumes) == (0, ("photos@1",), 1)
    until(lambda: all_believe(cluster), "all believe etcd again")
    cluster.start("n4")
    cluster.settle()
    with open_at(cluster) as store:
        assert store.dataset("photos").lookup(some_ids(N)).found.all()
        assert int(store.volumes.add("file:///vol/other")) == int(one) + 1


# 4. A copied data directory


def test_a_copied_data_directory_does_not_start_while_etcd_is_away(tmp_path: Path) -> None:
    with cluster_of_its_own(tmp_path) as (cluster, etcd):
        cluster.stop("n1")
        shutil.copytree(tmp_path / "n1", tmp_path / "copy")
        cluster.start("n1")
        etcd.stop()
        with pytest.raises(StoreLockedError, match="up elsewhere"):
            start_copy(cluster, tmp_path / "copy")
        cluster.stop("n1")
        cluster.start("n1")  # its own data may go on, and need not wait for long
        etcd.start()
        until(lambda: all_believe(cluster), "etcd is back")


def test_twins_that_are_up_both_take_part_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answered the copy as it started; once others see both of them, they refuse both."""
    with cluster_of_its_own(tmp_path) as (cluster, etcd):
        cluster.stop("n1")
        shutil.copytree(tmp_path / "n1", tmp_path / "copy")
        cluster.start("n1")
        etcd.stop()
        with monkeypatch.context() as patched:
            patched.setattr("kvmeta_server.cluster.joining.Joining._ask_for_twins", nothing)
            twin = start_copy(cluster, tmp_path / "copy")
        original = cluster.nodes["n1"].node
        until(lambda: bool(twin.node.parties.fenced and original.parties.fenced), "both are fenced")
        with pytest.raises(UnavailableError, match=r"lives twice|started again"):
            kvmeta.open(f"kvmeta://{twin.address}", options=kvmeta.ClientOptions(timeout_s=2))
        cluster.run(twin.stop())
        cluster.stop("n1")
        etcd.start()
        cluster.start("n1")
        until(lambda: all_believe(cluster), "etcd is back")
        assert not cluster.nodes["n1"].node.parties.fenced
        until(lambda: cluster.nodes["n2"].node.peers.likely(0), "the others ask it again")


async def nothing(*_: object) -> None: ...


def start_copy(cluster: LocalCluster, data: Path):  # type: ignore[no-untyped-def]
    """Start a node over a copy of n1's data, at an address of its own."""
    import msgspec

    from kvmeta.engine.options import EngineOptions
    from tests.cluster import LocalNode

    listen = f"127.0.0.1:{free_port()}"
    config = msgspec.structs.replace(cluster.nodes["n1"].config, data=data, listen=listen)
    node = LocalNode(data, config, EngineOptions(keep_tombstones=True))
    cluster.run(node.start())
    return node


# 5. Acknowledged into a dropped dataset


def test_nothing_is_acknowledged_into_a_dropped_dataset(
    three: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three nodes hear nothing from etcd: they hear of the drop from the third."""
    with open_at(three, "n1") as store:
        old = store.create_dataset("x")
        old.put(some_ids(100), places(100))
        for name in ("n2", "n3"):
            deafen(three, name)
        store.drop_dataset("x")
        new = store.create_dataset("x")
        monkeypatch.setattr(routing.Router, "take", lambda self, raw: None)  # keep to the one that is named
        with open_at(three, "n2") as other:
            other.dataset("x").put(some_ids(100, 1000), places(100))
            assert not other.dataset("x").lookup(some_ids(100)).found.any()
        assert new.lookup(some_ids(100, 1000)).found.all()
        for stale in (old.put, old.insert):
            with pytest.raises(NotFoundError, match="was dropped"):
                stale(some_ids(1), places(1))
        with pytest.raises(NotFoundError, match="was dropped"):
            old.lookup(some_ids(1))


def deafen(cluster: LocalCluster, name: str) -> None:
    """Let a node hear nothing from etcd any more, though it can ask."""

    async def cancel() -> None:
        cluster.nodes[name].node.membership._tasks[0].cancel()

    cluster.run(cancel())


def test_a_drop_that_too_few_nodes_can_hear_of_says_so(
    three: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmeta_server.cluster.dataset_table.TELL_S", 0.5)
    with open_at(three, "n1") as store:
        store.create_dataset("x")
        three.kill("n2")
        three.kill("n3")
        with pytest.raises(kvmeta.OutcomeUnknownError, match="is dropped, and too few nodes"):
            store.drop_dataset("x")
        assert store.datasets() == ["default"]


# 6. and 7. Many volumes, many datasets


def test_a_node_joins_a_cluster_of_many_volumes(three: LocalCluster) -> None:
    uris = [f"file:///data/shards/part-{number // 1000:04}/{number:08}.tar" for number in range(20_000)]
    with open_at(three, "n1", timeout_s=60) as store:
        assert [int(volume) for volume in store.volumes.add(uris)] == list(range(1, len(uris) + 1))
    three.start("n4")
    with open_at(three, "n4", timeout_s=60) as store:
        assert [volume.uri for volume in store.volumes.list()] == uris
        store.volumes.move(7, "s3://moved/7")
        assert int(store.volumes.add("s3://new")) == len(uris) + 1
    until(lambda: three.nodes["n2"].node.membership.volumes.get(7).uri == "s3://moved/7", "the move")  # type: ignore[union-attr]


def test_a_dataset_dropped_amid_a_copy_costs_the_copy_nothing_else(three: LocalCluster) -> None:
    names = [f"set{number}" for number in range(30)]
    with open_at(three, "n1", timeout_s=60) as store:
        for name in names:
            store.create_dataset(name).put(some_ids(20), places(20))
        three.start("n4")
        for name in names[::2]:
            store.drop_dataset(name)
        three.settle()
        for name in names[1::2]:
            assert store.dataset(name).lookup(some_ids(20)).found.all()


def test_masked_lookups_end_soon_where_owners_are_long_gone(three: LocalCluster) -> None:
    """Too few owners, for a while now: nothing would become better of waiting."""
    with open_at(three, "n1", timeout_s=20) as store:
        ds = store.dataset()
        ds.put(some_ids(100), places(100))
        three.kill("n2")
        three.kill("n3")
        peers = three.nodes["n1"].node.peers
        until(lambda: all(asked(three, peers.long_gone, slot) for slot in (1, 2)), "both long gone")
        started = time.monotonic()
        assert ds.lookup(some_ids(100), on_error="mask").failed.all()
        assert time.monotonic() - started < membership.LEASE_S  # seven tries take longer
        assert np.count_nonzero(ds.lookup(some_ids(100), on_error="mask").found) == 0
