"""Faults planted in the rules of who is who: addresses, histories of the map, lives of a node, datasets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kvmeta_server.cluster import cluster_map as maps
from kvmeta_server.cluster import dataset_table, tables
from kvmeta_server.cluster.believing import Belief
from kvmeta_server.cluster.cluster_map import ClusterMap, decode
from kvmeta_server.cluster.dataset_table import DatasetTable
from kvmeta_server.cluster.history import History
from kvmeta_server.cluster.joining import Joining
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.parties import Parties
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.tables import Tables, decode_tables
from kvmeta_server.simulator.faults import Mix

Patch = Callable[[Any, str, Any], None]

ADDRESSES = Mix(25, ("swapped addresses", "another's address", "crash", "etcd out of reach"), 2.0)
STRAY = Mix(25, ("stray agreement", "isolate", "crash", "purge"), 1.0)
SET_BACK = Mix(15, ("etcd set back", "join", "drain", "recreate", "crash"), 3.0)
EMPTIED = Mix(15, ("etcd emptied", "join", "recreate", "crash"), 3.0)
TWINS = Mix(8, ("twin", "recreate", "crash"), 8.0)
RECREATED = Mix(25, ("recreate", "deaf", "isolate"), 1.5)
"""So that one thing is taken for another."""


def a_request_does_not_name_its_node(patch: Patch) -> None:
    patch(Parties, "check_receiver", lambda self, parties: self.check_alone())


def two_members_keep_one_address(patch: Patch) -> None:
    patch(maps, "_without_address", lambda members, address: members)


def an_address_is_not_taken_back(patch: Patch) -> None:
    async def never(self: Any, fence: Any) -> None:
        await asyncio.Event().wait()

    patch(Joining, "keep_address", never)


def any_agreement_is_believed(patch: Patch) -> None:
    def agree(self: Any, dataset: str, partitions: Any, version: int) -> None:
        ranges = self.state.ranges(dataset, self._map.partitions)
        ranges.agree(np.fromiter(partitions, np.int64), version)
        self.allow_purge(dataset)

    patch(Replica, "agree", agree)


def histories_are_not_compared(patch: Patch) -> None:
    patch(ClusterMap, "descends_from", lambda self, epoch, digest: True)


def tables_are_not_compared(patch: Patch) -> None:
    patch(Tables, "descends_from", lambda self, other: True)


def an_empty_etcd_is_believed(patch: Patch) -> None:
    map_in, tables_in = Belief.map_in, Belief.tables_in

    def the_map(self: Any, held: Any, *, cached: bool = True) -> Any:
        if held is None and self.map is not None and not cached:
            return self.map
        return map_in(self, held, cached=cached)

    def the_tables(self: Any, held: Any, *, cached: bool = True) -> Any:
        if held is None and self.map is not None and not cached:
            return Tables(self.map.cluster_id, 1 << 40, 1 << 40)
        return tables_in(self, held, cached=cached)

    patch(Belief, "map_in", the_map)
    patch(Belief, "tables_in", the_tables)


def datasets_change_in_an_etcd_that_is_not_believed(patch: Patch) -> None:
    map_in, tables_in = Belief.map_in, Belief.tables_in

    def any_map(self: Any, held: Any, *, cached: bool = True) -> Any:
        return decode(held.data) if cached and held is not None else map_in(self, held, cached=cached)

    def any_tables(self: Any, held: Any, *, cached: bool = True) -> Any:
        return (
            decode_tables(held.data) if cached and held is not None else tables_in(self, held, cached=cached)
        )

    patch(Belief, "map_in", any_map)
    patch(Belief, "tables_in", any_tables)


def a_lost_cluster_is_founded_anew(patch: Patch) -> None:
    async def may_found(self: Any) -> bool:
        return self._membership.value("map") is None

    async def found(self: Any, founded: Any) -> bool:
        writes = {"tables": Tables(founded.cluster_id).encode(), "map": founded.encode()}
        return await self.change_all(writes, {"map": 0})

    patch(Joining, "_may_found", may_found)
    patch(Membership, "found", found)


def what_is_recovered_names_no_ancestors(patch: Patch) -> None:
    recovered = ClusterMap.recovered
    patch(
        ClusterMap,
        "recovered",
        lambda self, epoch: replace(recovered(self, epoch), history=History(bytes(8))),
    )


def lives_are_not_compared(patch: Patch) -> None:
    async def check_sender(self: Any, parties: Any) -> None: ...

    patch(Parties, "check_sender", check_sender)
    patch(Parties, "check_member", lambda self, parties: None)
    patch(Parties, "answered", lambda self, slot, life, asked_at: None)


def twins_go_on(patch: Patch) -> None:
    patch(Parties, "fence", lambda self, reason: None)


def nobody_is_asked_for_twins(patch: Patch) -> None:
    async def nobody(self: Any, remembered: Any) -> None: ...

    patch(Joining, "_ask_for_twins", nobody)


def datasets_are_held_by_name(patch: Patch) -> None:
    def by_name(name: str, number: int) -> str:
        return name

    patch(tables, "local_name", by_name)
    patch(dataset_table, "local_name", by_name)


def a_drop_is_told_to_nobody(patch: Patch) -> None:
    async def nobody(self: Any, tables: Any, until_s: float) -> bool:
        return True

    patch(DatasetTable, "_tell", nobody)


MISTAKEN: tuple[tuple[str, Callable[[Patch], None], int, Mix], ...] = (
    ("a request does not say which node is meant", a_request_does_not_name_its_node, 15, ADDRESSES),
    ("two members keep one address", two_members_keep_one_address, 1, ADDRESSES),
    ("a node does not take its address back", an_address_is_not_taken_back, 3, ADDRESSES),
    ("an agreement that was not compared is believed", any_agreement_is_believed, 1, STRAY),
    ("maps are compared by their epochs alone", histories_are_not_compared, 1, SET_BACK),
    ("tables are not compared with those known", tables_are_not_compared, 0, SET_BACK),
    ("an empty etcd is believed", an_empty_etcd_is_believed, 11, EMPTIED),
    (
        "datasets change in an etcd that is not believed",
        datasets_change_in_an_etcd_that_is_not_believed,
        1,
        SET_BACK,
    ),
    ("a cluster that etcd lost is founded anew", a_lost_cluster_is_founded_anew, 14, EMPTIED),
    ("what is recovered does not name its ancestors", what_is_recovered_names_no_ancestors, 1, SET_BACK),
    ("lives of a node are not compared", lives_are_not_compared, 0, TWINS),
    ("twins go on", twins_go_on, 0, TWINS),
    ("a start asks no other member", nobody_is_asked_for_twins, 1, TWINS),
    ("nodes hold datasets by their names", datasets_are_held_by_name, 1, RECREATED),
    ("a drop is done before others know of it", a_drop_is_told_to_nobody, 7, RECREATED),
)
