"""A cluster's life, on real nodes over a real etcd: death, return, growth, and what must be refused."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import kvmeta
import kvmeta.operators
from kvmeta.engine.kernels import hashing
from kvmeta.engine.options import EngineOptions
from kvmeta.errors import (
    FormatError,
    InputError,
    OutcomeUnknownError,
    StoreLockedError,
    UnavailableError,
)
from kvmeta.version import join, split
from kvmeta_server.cluster import membership, moves
from kvmeta_server.dev import DevEtcd
from tests.cluster import LocalCluster, LocalNode, etcd, local_cluster
from tests.system.disks import needs, tmpfs

__all__ = ["etcd"]

pytestmark = pytest.mark.system

N = 20_000


@pytest.fixture
def three(tmp_path: Path, etcd: DevEtcd) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path, etcd, 3) as cluster:
        yield cluster


def some_ids(n: int = N, start: int = 0) -> np.ndarray:
    return kvmeta.ids_from_ints(np.arange(start, start + n, dtype=np.uint64))


def places(n: int = N, volume: int = 1) -> np.ndarray:
    out = np.zeros(n, kvmeta.LOCATION)
    out["volume"], out["offset"] = volume, np.arange(n)
    return out


def held_by(cluster: LocalCluster, name: str) -> int:
    """Return how many of the test's entries a node's own store holds live."""
    return int(cluster.nodes[name].local.dataset().lookup(some_ids()).found.sum())


def until(true: object, what: str, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.05)


def open_at(cluster: LocalCluster, *names: str, **options: object) -> kvmeta.Store:
    addresses = [cluster.nodes[name].address for name in (names or cluster.nodes)]
    return kvmeta.open("kvmeta://" + ",".join(addresses), options=kvmeta.ClientOptions(**options))  # type: ignore[arg-type]


# Death and return


def test_every_owner_holds_what_was_put(three: LocalCluster) -> None:
    with open_at(three) as store:
        store.dataset().put(some_ids(), places())
    for name in three.nodes:
        until(lambda name=name: held_by(three, name) == N, name)


def test_with_one_node_gone_all_goes_on_and_it_catches_up(three: LocalCluster) -> None:
    with open_at(three) as store:
        ds = store.dataset()
        ds.put(some_ids(), places())
        three.stop("n2")
        ds.put(some_ids(), places(volume=2))
        ds.delete(some_ids(100))
        hit = ds.lookup(some_ids())
        assert hit.found.sum() == N - 100
        assert (hit.locations["volume"][100:] == 2).all()
        assert ds.insert(some_ids(100), places(100)).inserted.all()
        three.start("n2")
        n2 = three.nodes["n2"].local.dataset()
        until(lambda: (n2.lookup(some_ids()).locations["volume"][100:] == 2).all(), "hints")
        until(lambda: n2.lookup(some_ids(100)).found.all(), "hints")


def test_with_two_of_three_gone_ids_fail_and_none_is_missed(three: LocalCluster) -> None:
    with open_at(three, "n1", timeout_s=20) as store:
        ds = store.dataset()
        ds.put(some_ids(100), places(100))
        three.stop("n2")
        three.stop("n3")
        hit = ds.lookup(some_ids(100), on_error="mask")
        assert hit.failed.all()
        with pytest.raises(kvmeta.IncompleteBatchError, match="replicas"):
            ds.lookup(some_ids(100))
        with pytest.raises(UnavailableError):
            ds.get(some_ids(1))
        with pytest.raises(OutcomeUnknownError) as told:
            ds.put(some_ids(10), places(10))
        assert told.value.failed is not None
        assert told.value.failed.all()
        with pytest.raises(UnavailableError, match="too few replicas"):
            list(ds.scan())
    three.start("n2")
    three.start("n3")


def test_fast_reads_ask_one_replica_and_confirm_what_it_lacks(three: LocalCluster) -> None:
    with open_at(three, "n1") as store:
        store.dataset().put(some_ids(), places())
    until(lambda: held_by(three, "n1") == N, "put")
    three.stop("n2")
    three.stop("n3")
    with open_at(three, "n1", consistency="fast", timeout_s=20) as store:
        hit = store.dataset().lookup(some_ids(N + 10), on_error="mask")
        assert hit.found[:N].all()
        assert hit.failed[N:].all()
    three.start("n2")
    three.start("n3")


def test_what_replicas_differ_in_is_repaired_before_the_answer(three: LocalCluster) -> None:
    """A row that one replica alone holds, as after a write that failed, is at W of them once it was read."""
    rows = np.zeros((1, 6), np.uint64)
    node = three.nodes["n1"].node
    mixed = np.empty((1, 2), np.uint64)
    hashing.mix(some_ids(1).view(np.uint64).reshape(-1, 2), node.backend.local.engine.keys, mixed)
    rows[:, :2], rows[:, 2], rows[:, 3] = mixed, node.backend.local.engine.clock.stamp(), 9
    node.replica.apply("default", 0, rows)
    with open_at(three, "n1") as store:
        found = [store.dataset().lookup(some_ids(1)).found[0] for _ in range(3)]
    assert found[0] == found[1] == found[2]
    holding = [held_by(three, name) for name in three.nodes]
    assert sum(holding) >= 2 or not found[0]


def test_anti_entropy_makes_replicas_equal_and_lets_tombstones_go(three: LocalCluster) -> None:
    with open_at(three) as store:
        ds = store.dataset()
        ds.put(some_ids(), places())
        ds.delete(some_ids(1000))
    until(lambda: all(held_by(three, name) == N - 1000 for name in three.nodes), "writes")
    # n3 loses everything that it has in memory and on disk but its name
    lost = three.nodes["n3"]
    three.run(drop_everything(lost))
    assert held_by(three, "n3") == 0
    time.sleep(0.01)
    with kvmeta.operators.open(three.target) as cluster:
        done = cluster.repair()
        assert done.partitions == 16
        assert done.rows >= N
        assert done.skipped == 0
        assert held_by(three, "n3") == N - 1000
        again = cluster.repair()
        assert again.rows == 0
    for node in three.nodes.values():
        tree = node.local.engine.tree("default")
        assert tree.purge_below > 0
        node.local.compact()
        assert sum(segment.record.tombstones for run in tree.runs for segment in run.segments) == 0
    with open_at(three) as store:
        assert store.dataset().lookup(some_ids()).found.sum() == N - 1000


async def drop_everything(node: object) -> None:
    engine = node.local.engine  # type: ignore[attr-defined]
    await asyncio.to_thread(engine.background.drop, engine.tree("default"), ((0, (1 << 64) - 1),))


def test_a_promise_keeps_a_late_hint_from_bringing_back_what_was_deleted(three: LocalCluster) -> None:
    with open_at(three) as store:
        ds = store.dataset()
        ds.put(some_ids(10), places(10))
        version = int(ds.lookup(some_ids(1)).versions[0])
        ds.delete(some_ids(10))
    time.sleep(0.01)
    with kvmeta.operators.open(three.target) as cluster:
        cluster.repair()
        cluster.repair()
    for node in three.nodes.values():
        node.local.compact()
    node = three.nodes["n1"].node
    late = np.zeros((1, 6), np.uint64)
    hashing.mix(some_ids(1).view(np.uint64).reshape(-1, 2), node.backend.local.engine.keys, late)
    late[:, 2] = version
    assert node.replica.apply("default", 0, late).outcomes.tolist() == [2]
    with open_at(three) as store:
        assert not store.dataset().lookup(some_ids(10)).found.any()


def flip_bits(file: Path, pages: tuple[int, ...]) -> None:
    data = bytearray(file.read_bytes())
    for page in pages:
        data[page * 4096 + 99] ^= 4
    file.write_bytes(data)


def digests(cluster: LocalCluster, name: str) -> list[int]:
    nothing = np.zeros(16, np.uint64)
    replica = cluster.nodes[name].node.replica
    told, _ = replica.digests("default", range(16), (1 << 64) - 1, nothing, 0, promise=False)
    return told.reshape(-1).tolist()


def test_a_damaged_range_is_repaired_from_replicas_by_itself(three: LocalCluster) -> None:
    with open_at(three) as store, kvmeta.operators.open(three.target) as cluster:
        ds = store.dataset()
        ds.put(some_ids(), places())
        until(lambda: all(held_by(three, name) == N for name in three.nodes), "writes")
        three.nodes["n1"].local.flush()
        three.stop("n1")
        (file,) = (three.path / "n1" / "segments").iterdir()
        flip_bits(file, (5, 6, 90))
        ds.put(some_ids(1000), places(1000, volume=2))
        ds.delete(some_ids(1000, start=1000))
        three.start("n1")
        n1 = three.nodes["n1"].local
        with open_at(three, "n1", consistency="fast", timeout_s=20) as fast:
            assert fast.dataset().lookup(some_ids()[2000:]).found.all()  # which meets the damage
        until(lambda: not n1.dataset().lookup(some_ids(), on_error="mask").failed.any(), "mending")
        until(lambda: digests(three, "n1") == digests(three, "n2") == digests(three, "n3"), "hints")
        mended = {member.name: (member.damaged, member.mended) for member in cluster.status().members}
        assert mended == {"n1": (0, 3), "n2": (0, 0), "n3": (0, 0)}
        assert n1.verify().ok
        assert n1.stats().datasets[0].quarantined_runs == 0
        assert held_by(three, "n1") == N - 1000
        for consistency in ("quorum", "fast"):
            with open_at(three, "n1", consistency=consistency) as other:
                hit = other.dataset().lookup(some_ids())
                assert (hit.found == ~np.isin(np.arange(N), np.arange(1000, 2000))).all()
                assert (hit.locations["volume"][:1000] == 2).all()
                assert (hit.locations["offset"][2000:] == np.arange(2000, N)).all()
        assert cluster.repair().rows == 0


# Growing and shrinking


def test_a_cluster_grows_and_shrinks_with_everything_in_it(three: LocalCluster) -> None:
    with open_at(three, "n1") as store, kvmeta.operators.open(three.target) as cluster:
        ds = store.dataset()
        ds.put(some_ids(), places())
        ds.delete(some_ids(500))
        for name in ("n4", "n5"):
            three.start(name)
            three.settle()
            assert ds.lookup(some_ids()).found.sum() == N - 500
        owned = [member.owned for member in cluster.status().members]
        assert sum(owned) == 16 * 3
        assert min(owned) > 0
        until(lambda: not any(member.leftover for member in cluster.status().members), "dropping")
        for name in ("n2", "n4"):
            cluster.drain(name)
            gone = three.nodes.pop(name)
            three.settle()
            three.run(gone.stop())
        hit = ds.lookup(some_ids())
        assert hit.found.sum() == N - 500
        assert (hit.locations["offset"][500:] == np.arange(500, N)).all()
        assert len(np.concatenate([page.ids for page in ds.scan()])) == N - 500
        assert {member.name for member in cluster.status().members} == {"n1", "n3", "n5"}


def test_what_a_node_owns_no_more_is_dropped_and_may_come_back(tmp_path: Path, etcd: DevEtcd) -> None:
    with (
        local_cluster(tmp_path, etcd, 1, replicas=1, write_quorum=1) as cluster,
        open_at(cluster, "n1") as store,
    ):
        store.dataset().put(some_ids(), places())
        cluster.start("n2")
        cluster.settle()
        until(lambda: held_by(cluster, "n1") + held_by(cluster, "n2") == N, "dropping")
        assert held_by(cluster, "n2") > N / 4
        store.dataset().delete(some_ids(N // 2))
        with kvmeta.operators.open(cluster.target) as operator:
            operator.drain("n2", force=True)
        gone = cluster.nodes.pop("n2")
        cluster.settle()
        cluster.run(gone.stop())
        assert store.dataset().lookup(some_ids()).found.sum() == N - N // 2


def test_a_dead_node_is_removed_and_its_share_copied(three: LocalCluster) -> None:
    three.start("n4")
    three.settle()
    with open_at(three, "n1") as store, kvmeta.operators.open(three.target) as cluster:
        store.dataset().put(some_ids(), places())
        dead = three.nodes.pop("n3")
        three.run(dead.stop())
        until(lambda: not three.nodes["n1"].node.peers.likely(2), "its absence")
        cluster.remove("n3")
        three.settle()
        assert store.dataset().lookup(some_ids()).found.all()
        assert all(held_by(three, name) == N for name in three.nodes)
        with pytest.raises(InputError, match="was taken out"):
            three.run(dead.start())


def test_a_node_at_the_address_of_a_removed_one_does_not_answer_for_it(
    three: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one holds nothing yet: its answers as the old one would make a quorum that misses entries."""
    apply_at(three, "n2", "n3")
    dead = three.nodes["n3"]
    with monkeypatch.context() as patched, open_at(three, "n1") as store:
        patched.setattr(moves.Moves, "_copy_chunk", never)
        remove_dead(three, "n3")
        three.nodes["n4"] = dead  # its address
        three.start("n4")
        until(lambda: three.nodes["n1"].node.peers.likely(3), "its successor")
        assert store.dataset().lookup(some_ids()).found.all()
    three.settle()
    with open_at(three, "n1") as store:
        assert store.dataset().lookup(some_ids()).found.all()
    three.run(dead.stop())


def test_where_fewer_owners_are_left_each_has_what_the_others_acknowledged(three: LocalCluster) -> None:
    """Of two owners one is read; what was acknowledged by the two others of three must be there by then."""
    apply_at(three, "n2", "n3")
    dead = three.nodes["n3"]
    remove_dead(three, "n3")
    three.settle()
    with open_at(three, "n1") as store:
        assert store.dataset().lookup(some_ids()).found.all()
    three.run(dead.stop())


def apply_at(cluster: LocalCluster, *names: str) -> None:
    """Put the test's entries at some replicas: with two of three they could have been acknowledged."""
    rows = np.zeros((N, 6), np.uint64)
    mixed = np.empty((N, 2), np.uint64)
    engine = cluster.nodes["n1"].local.engine
    hashing.mix(some_ids().view(np.uint64).reshape(-1, 2), engine.keys, mixed)
    rows[:, :2], rows[:, 2] = mixed, engine.clock.stamp()
    for name in names:
        cluster.nodes[name].node.replica.apply("default", 0, rows)


def remove_dead(cluster: LocalCluster, name: str) -> None:
    """Kill a node and take it out."""
    slot = cluster.nodes[name].node.slot
    cluster.kill(name)
    del cluster.nodes[name]
    until(lambda: not cluster.nodes["n1"].node.peers.likely(slot), "its absence")
    with kvmeta.operators.open(cluster.target) as operator:
        operator.remove(name)


def test_a_move_whose_target_dies_waits_and_is_undone_by_removing_it(
    three: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_at(three, "n1") as store, kvmeta.operators.open(three.target) as cluster:
        ds = store.dataset()
        ds.put(some_ids(), places())
        monkeypatch.setattr(moves.Moves, "_copy", never)
        three.start("n4")
        assert cluster.status().moving
        three.kill("n4")
        ds.put(some_ids(), places(volume=3))
        assert (ds.lookup(some_ids()).locations["volume"] == 3).all()
        time.sleep(0.5)
        assert cluster.status().moving
        gone = three.nodes.pop("n4")
        until(lambda: not three.nodes["n1"].node.peers.likely(3), "its absence")
        cluster.remove("n4")
        three.settle()
        assert (ds.lookup(some_ids()).locations["volume"] == 3).all()
        three.run(gone.stop())


async def never(*_: object) -> None:
    """Copy nothing."""


# What must be refused


def test_a_node_does_not_take_anothers_data(three: LocalCluster, tmp_path: Path) -> None:
    three.stop("n3")
    with pytest.raises(InputError, match="data of node 'n3'"):
        start_with(three, "n9", tmp_path / "n3")
    three.start("n3")


def start_with(cluster: LocalCluster, name: str, data: Path) -> None:
    node = cluster.nodes["n3"]
    settings = replace_node(node.config, name, data)
    cluster.run(LocalNode(data, settings, EngineOptions(keep_tombstones=True)).start())


def replace_node(config: object, name: str, data: Path) -> object:
    cluster = msgspec.structs.replace(config.cluster, node=name)  # type: ignore[attr-defined]
    return msgspec.structs.replace(config, cluster=cluster, data=str(data))  # type: ignore[type-var]


def test_a_copy_of_a_nodes_data_does_not_run_beside_it(
    three: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmeta_server.cluster.node.LEASE_S", 0)
    three.stop("n3")
    shutil.copytree(tmp_path / "n3", tmp_path / "copy")
    three.start("n3")
    with pytest.raises(StoreLockedError, match="up elsewhere"):
        start_with(three, "n3", tmp_path / "copy")


def test_a_node_whose_data_is_gone_is_another_node(three: LocalCluster, tmp_path: Path) -> None:
    three.stop("n3")
    shutil.rmtree(tmp_path / "n3")
    with pytest.raises(InputError, match="already, with other data"):
        three.start("n3")
    three.nodes.pop("n3")


def test_a_store_with_entries_does_not_join(three: LocalCluster, tmp_path: Path) -> None:
    with kvmeta.open(tmp_path / "single") as store:
        store.dataset().put(some_ids(10), places(10))
    with pytest.raises(InputError, match="holds 10 entries"):
        three.start("single")


def test_two_clusters_of_one_name_are_told_apart(tmp_path: Path, etcd: DevEtcd) -> None:
    with local_cluster(tmp_path / "a", etcd, 1) as cluster:
        cluster.stop("n1")
        other = DevEtcd(tmp_path / "etcd")
        try:
            stranger = LocalCluster(tmp_path / "b", other)
            stranger.name = cluster.name
            stranger.start("m1")
            stranger.path, stranger.nodes["n1"] = tmp_path / "a", cluster.nodes["n1"]
            with pytest.raises(FormatError, match="another cluster of the name"):
                stranger.start("n1")
            stranger.nodes.pop("n1")
            stranger.close()
        finally:
            other.stop()
        cluster.start("n1")


def test_a_node_with_what_another_cluster_is_founded_with_does_not_join_one_of_its_name(
    three: LocalCluster,
) -> None:
    for name, given, there in (("partitions", 64, 16), ("replicas", 2, 3), ("write_quorum", 3, 2)):
        told = f"cluster.{name}: {given} was given, and cluster .* was founded with {there}"
        with pytest.raises(InputError, match=told):
            three.start("another", **{name: given})
    three.stop("n3")
    with pytest.raises(InputError, match=r"64 was given, and cluster .* was founded with 16"):
        three.start("n3", partitions=64)
    three.start("n3", replicas=3)
    assert [node.name for node in three.nodes["n3"].node.membership.current.members] == ["n1", "n2", "n3"]


def test_a_node_of_another_cluster_is_refused_by_its_data(three: LocalCluster, tmp_path: Path) -> None:
    three.stop("n3")
    name, three.name = three.name, "another"
    with pytest.raises(InputError, match="belongs to node 'n3' of cluster"):
        three.start("n3")
    three.name = name
    three.start("n3")


def test_rows_stamped_far_ahead_are_refused_saying_by_how_much(three: LocalCluster) -> None:
    ahead = three.nodes["n1"].local.engine.clock
    ahead._unix_ms = lambda: time.time_ns() // 1_000_000 + 90_000  # type: ignore[attr-defined]
    with (
        open_at(three, "n1", timeout_s=20) as store,
        pytest.raises(OutcomeUnknownError, match=r"stamped \d+ s ahead"),
    ):
        store.dataset().put(some_ids(10), places(10))
    ahead._unix_ms = lambda: time.time_ns() // 1_000_000  # type: ignore[attr-defined]


def test_a_node_that_stamped_far_ahead_does_not_start(three: LocalCluster) -> None:
    three.stop("n3")
    state = three.nodes["n3"].node.state
    now = split(three.nodes["n1"].local.engine.clock.stamp())
    state.reserve(join(now._replace(unix_ms=now.unix_ms + 180_000)))
    with pytest.raises(UnavailableError, match="stamped up to"):
        three.start("n3")
    state.reserve(join(now))
    three.start("n3")


@needs("mount", "umount")
def test_a_node_whose_disk_is_full_costs_its_own_acknowledgements_only(tmp_path: Path, etcd: DevEtcd) -> None:
    (tmp_path / "nodes").mkdir()
    with (
        tmpfs(tmp_path / "nodes" / "n3", "14m"),
        local_cluster(tmp_path / "nodes", etcd, 3) as cluster,
        open_at(cluster) as store,
    ):
        ds = store.dataset()
        ids = np.random.default_rng(1).integers(0, 256, (1_000_000, 16), np.uint8).view("V16").reshape(-1)
        for start in range(0, len(ids), 50_000):
            ds.put(ids[start : start + 50_000], places(50_000))
        until(lambda: not cluster.nodes["n3"].local.engine.may_write, "a full disk")
        assert ds.lookup(ids).found.all()
        waiting = [node.node.hints.waiting().get(2, 0) for node in cluster.nodes.values()]
        assert sum(waiting) > 0


def test_operators_are_told_what_cannot_be(three: LocalCluster) -> None:
    with kvmeta.operators.open(three.target) as cluster:
        with pytest.raises(InputError, match="2 nodes for 3 replicas"):
            cluster.drain("n2")
        with pytest.raises(InputError, match="answers; drain it"):
            cluster.remove("n2")
        with pytest.raises(kvmeta.NotFoundError, match="no node 'n7'"):
            cluster.drain("n7")
        with pytest.raises(InputError, match="not draining"):
            cluster.undrain("n1")
        assert cluster.rebalance().moves == 0
        first = cluster.drain("n2", force=True)
        with pytest.raises(InputError, match="on its way out"):
            cluster.drain("n3")
        assert cluster.status().epoch >= first.epoch
        gone = three.nodes.pop("n2")
        three.settle()
        three.run(gone.stop())


def test_without_etcd_reads_and_writes_go_on_and_changes_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "LEASE_S", 2)
    server = DevEtcd(tmp_path / "etcd")
    with local_cluster(tmp_path, server, 3) as cluster:
        with open_at(cluster) as store, kvmeta.operators.open(cluster.target) as operator:
            ds = store.dataset()
            ds.put(some_ids(1000), places(1000))
            store.create_dataset("named").put(some_ids(10), places(10))
            server.stop()
            time.sleep(3)
            ds.put(some_ids(1000, 1000), places(1000))
            assert ds.lookup(some_ids(2000)).found.all()
            assert not operator.status().etcd
            with pytest.raises(UnavailableError, match="etcd does not answer"):
                operator.drain("n2", force=True)
            with pytest.raises(UnavailableError, match="etcd"):
                store.create_dataset("more")
            with pytest.raises(UnavailableError, match="holds no lease"):
                operator.repair()
            cluster.stop("n2")
            cluster.start("n2")  # it remembers the map, and keeps what it cannot ask about
            assert cluster.nodes["n2"].local.datasets() == ["default", "named@1"]
            assert store.dataset("named").lookup(some_ids(10)).found.all()
            assert ds.lookup(some_ids(2000)).found.all()
            server = DevEtcd(tmp_path / "etcd", port=server.port)
            until(lambda: operator.status().etcd, "etcd is back")
            store.create_dataset("more").put(some_ids(10), places(10))
        cluster.etcd = server
    server.stop()
