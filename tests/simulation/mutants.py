"""Faults planted in the cluster's rules, one at a time: the simulator must notice each of them.

`python -m tests.simulation.mutants` looks for the first seed that kills each and prints the table of
docs/reliability.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from kvmeta.engine import wal
from kvmeta.engine.kernels.layout import VERSION
from kvmeta.engine.state import State as Store
from kvmeta.errors import KvmetaError
from kvmeta.protocol.codes import Outcome, State
from kvmeta.version import EPOCH_MS, MS_SHIFT, SLOT_SHIFT, TOMBSTONE, VERSION_MAX, HybridClock
from kvmeta_server.cluster import anti_entropy, deciding, moves, quorum_rows, reading, replica, writing
from kvmeta_server.cluster.anti_entropy import AntiEntropy
from kvmeta_server.cluster.cluster_map import COPYING, ClusterMap
from kvmeta_server.cluster.deciding import Decider
from kvmeta_server.cluster.handoff import Handoff
from kvmeta_server.cluster.joining import Joining
from kvmeta_server.cluster.membership import Membership
from kvmeta_server.cluster.moves import Moves
from kvmeta_server.cluster.node_state import NodeState
from kvmeta_server.cluster.reading import Read, Reader
from kvmeta_server.cluster.replica import Replica
from kvmeta_server.cluster.rows import Applied, Bound
from kvmeta_server.cluster.seams import Put
from kvmeta_server.cluster.tally import Tally
from kvmeta_server.cluster.writing import Writer
from kvmeta_server.simulator.faults import Mix
from kvmeta_server.simulator.simulation import OWN_MIX, simulate
from tests.simulation.mistaken import MISTAKEN

SEEDS_MAX = 400
Patch = Callable[[Any, str, Any], None]


MOVING = Mix(40, ("join", "drain", "undrain", "crash", "isolate", "purge"), 1.5)
AWAY = Mix(30, ("isolate", "split", "one way", "purge"), 2.0)
"""So that hints come late, after what they say was deleted and purged."""
CUT_OFF = Mix(30, ("join", "drain", "undrain", "etcd out of reach"), 2.0)
"""So that nodes work on an old map."""
LONELY = Mix(40, ("join", "drain", "undrain"), 1.0, lonely=1)
"""So that much is written which is not acknowledged."""
SLOWLY = Mix(12, ("join", "drain", "undrain"), 12.0)
"""So that what moves arrives, and is compared, before it moves again."""
CLOCKS = Mix(30, ("skew", "crash", "restart"), 1.0)
"""So that clocks go back while a node is down."""
CROWDED = Mix(40, ("loss", "skew", "lateness"), 1.0, crowd=8)
"""So that writes of one ID meet."""


class Mutant(NamedTuple):
    """A planted fault: the rule it breaks, what plants it, and the first seed of a mix that kills it."""

    rule: str
    plant: Callable[[Patch], None]
    seed: int
    mix: Mix = OWN_MIX


def targets_count_as_owners(patch: Patch) -> None:
    def enough(tally: Any) -> Any:
        return tally.owners + tally.targets >= tally.need_owners

    patch(Tally, "enough", property(enough))


def epoch_unchecked_at_the_acknowledgement(patch: Patch) -> None:
    async def attempt(self: Any, dataset: str, rows: Any, bound: Bound = Bound.PROMISED) -> Any:
        cluster_map = self._maps.current
        partitions = cluster_map.partition_of(rows[:, 0])
        tally = writing.Tally(cluster_map, partitions, bound)
        await self._spread(tally, dataset, cluster_map, partitions, rows)
        if tally.newest:
            self._clock.observe(tally.newest)
        return tally.enough, tally, cluster_map.epoch

    patch(Writer, "attempt", attempt)


def clock_ceiling_not_kept(patch: Patch) -> None:
    patch(NodeState, "reserve", lambda self, version: None)


def stale_taken_for_accepted(patch: Patch) -> None:
    apply = Replica.apply

    def lenient(self: Any, *args: Any, **named: Any) -> Applied:
        outcomes, versions = apply(self, *args, **named)
        return Applied(np.where(outcomes == Outcome.STALE, np.uint8(Outcome.TOOK_EFFECT), outcomes), versions)

    patch(Replica, "apply", lenient)


def tombstones_dropped_early(patch: Patch) -> None:
    def allow(self: Any, dataset: str, held: Any) -> None:
        self.tree(dataset).purge_below = VERSION_MAX

    patch(Replica, "_allow_purge", allow)


def reads_not_brought(patch: Patch) -> None:
    async def bring(self: Any, dataset: str, rows: Any, bound: Any = None) -> Any:
        return np.ones(len(rows), np.bool_)

    patch(Writer, "bring", bring)


def read_quorum_one_short(patch: Patch) -> None:
    quorum = ClusterMap.read_quorum.func  # type: ignore[attr-defined]
    patch(ClusterMap, "read_quorum", property(lambda self: np.maximum(quorum(self) - 1, 1)))


def write_quorum_one_short(patch: Patch) -> None:
    quorums = ClusterMap.write_quorums.func  # type: ignore[attr-defined]

    def short(self: Any) -> Any:
        owners, targets = quorums(self)
        return np.maximum(owners - 1, 1), targets

    patch(ClusterMap, "write_quorums", property(short))


def targets_not_waited_for(patch: Patch) -> None:
    quorums = ClusterMap.write_quorums.func  # type: ignore[attr-defined]
    patch(ClusterMap, "write_quorums", property(lambda self: (quorums(self)[0], quorums(self)[1] * 0)))


def copied_from_one_owner(patch: Patch) -> None:
    read = Moves._read

    async def from_one(self: Any, cluster_map: Any, dataset: str, partition: int) -> Any:
        alone = np.ones_like(cluster_map.read_quorum)
        copy = type(cluster_map)(**{name: getattr(cluster_map, name) for name in _fields(cluster_map)})
        copy.__dict__["read_quorum"] = alone
        return await read(self, copy, dataset, partition)

    patch(Moves, "_read", from_one)


def switched_before_all_have_copied(patch: Patch) -> None:
    async def all_have(self: Any, cluster_map: Any) -> Any:
        return np.ones(cluster_map.partitions, np.bool_)

    patch(Moves, "_copied_by_all", all_have)


def steps_without_the_owners_knowing(patch: Patch) -> None:
    async def all_know(self: Any, cluster_map: Any, phase: int) -> Any:
        return cluster_map.phase == phase

    patch(Moves, "_known_to_enough", all_know)


def promises_not_kept(patch: Patch) -> None:
    apply = Replica.apply

    def anyway(self: Any, dataset: str, epoch: int, rows: Any, bound: Any = None) -> Applied:
        return apply(self, dataset, epoch, rows, Bound.NONE)

    patch(Replica, "apply", anyway)


def agreed_without_comparing(patch: Patch) -> None:
    async def compare(
        self: Any, dataset: str, owners: tuple[int, ...], partitions: list[int], cut: int, epoch: int
    ) -> int:
        for owner in owners:
            await self._peers.agree(owner, dataset, partitions, cut)
        return 0

    patch(AntiEntropy, "_compare", compare)


def dropped_while_it_is_read(patch: Patch) -> None:
    copy = Moves._copy

    async def dropping(self: Any, cluster_map: Any) -> bool:
        more = await copy(self, cluster_map)
        now = self._membership.current
        leaving = (now.owners == self._replica.slot).any(axis=1) & (now.phase == COPYING)
        leaving &= ~(now.targets == self._replica.slot).any(axis=1)
        if leaving.any():
            stretches = tuple(moves._stretches(now, np.flatnonzero(leaving)))
            for tree in self._replica.engine.trees.values():
                self._replica.engine.background.drop(tree, stretches)
        return more

    patch(Moves, "_copy", dropping)


def what_is_left_over_counts_as_held(patch: Patch) -> None:
    patch(NodeState, "leftover", lambda self, partitions: np.zeros(partitions, np.bool_))


def nothing_fenced(patch: Patch) -> None:
    def never(cluster_map: Any, held: Any, partitions: Any, epoch: int) -> Any:
        return np.zeros(len(partitions), np.bool_)

    patch(replica, "_fenced", never)


def newer_maps_not_kept(patch: Patch) -> None:
    set_map = NodeState.set_map

    def only_once(self: Any, cluster_map: Any) -> None:
        if self.map() is None:
            set_map(self, cluster_map)

    patch(NodeState, "set_map", only_once)


def relocates_on_any_version(patch: Patch) -> None:
    def judge(self: Any, got: Any, rows: Any, expired: int) -> Any:
        return np.full(len(rows), Outcome.UNACKNOWLEDGED, np.uint8)

    patch(Decider, "_judge", judge)


def inserts_without_a_look(patch: Patch) -> None:
    patch(deciding, "_absent", lambda rows, expired: np.ones(len(rows), np.bool_))


def left_behind_taken_for_kept(patch: Patch) -> None:
    async def kept(self: Any, dataset: str, rows: Any, left: Any) -> Any:
        return np.ones(int(left.sum()), np.bool_)

    patch(Decider, "_kept", kept)


def attempts_forgotten(patch: Patch) -> None:
    attempt = Writer.attempt

    async def forgetting(self: Any, *args: Any) -> Any:
        acknowledged, tally, epoch = await attempt(self, *args)
        tally.may_be_held[:] = False
        return acknowledged, tally, epoch

    patch(Writer, "attempt", forgetting)


def reads_not_brought_to_targets(patch: Patch) -> None:
    patch(reading.Unsettled, "of", lambda self, versions: np.zeros(len(versions), np.bool_))


def fast_misses_believed(patch: Patch) -> None:
    read = Reader.read

    async def believing(self: Any, dataset: str, mixed: Any, *, fast: bool = False) -> Read:
        if not fast:
            return await read(self, dataset, mixed)
        states, rows = np.full(len(mixed), State.UNAVAILABLE, np.uint8), np.zeros((len(mixed), 6), np.uint64)
        rows[:, :2] = mixed
        await self._read_one(dataset, states, rows)
        return Read(np.full_like(states, State.ANSWERED), rows, "")

    patch(Reader, "read", believing)


def unavailable_told_as_absent(patch: Patch) -> None:
    read = Reader.read

    async def absent(self: Any, dataset: str, mixed: Any, *, fast: bool = False) -> Read:
        got = await read(self, dataset, mixed, fast=fast)
        return Read(np.full_like(got.states, State.ANSWERED), got.rows, "")

    patch(Reader, "read", absent)


def the_older_version_wins_a_copy(patch: Patch) -> None:
    def older(parts: list[Any]) -> Any:
        rows = np.concatenate(parts)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        first = np.ones(len(rows), np.bool_)
        first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
        return rows[first]

    patch(quorum_rows, "merged", older)
    patch(anti_entropy, "merged", older)


def acknowledged_without_a_sync(patch: Patch) -> None:
    durably = Store._durably

    def careless(self: Any, batch: Any) -> None:
        with suppress(KvmetaError):
            durably(self, batch)

    patch(Store, "_durably", careless)


def map_changed_without_comparing(patch: Patch) -> None:
    change_map = Membership.change_map

    async def at_once(self: Any, change: Any) -> Any:
        if self.belief.map is None:
            return await change_map(self, change)
        changed = change(self.current)
        if changed is not self.current:
            key = f"{self._prefix}/map"
            await self._seen(await self._authority.txn([Put(key, changed.encode())], held={}))
        return changed

    patch(Membership, "change_map", at_once)


def removed_nodes_come_back(patch: Patch) -> None:
    patch(Joining, "_check_membership", lambda self, cluster_map: None)


def hints_counted_for_the_quorum(patch: Patch) -> None:
    send = Writer._send

    async def counting(self: Any, tally: Any, slot: int, *rest: Any) -> None:
        before, tally.reason = tally.reason, ""
        await send(self, tally, slot, *rest)
        if tally.reason:
            to, is_owner, is_target = rest[-3:]
            tally.owners[to] += is_owner
            tally.targets[to] += is_target
        tally.reason = tally.reason or before

    patch(Writer, "_send", counting)


def hints_for_ex_owners_dropped(patch: Patch) -> None:
    async def taken(dataset: str, rows: Any) -> Any:
        return np.ones(len(rows), np.bool_)

    send = Handoff._send

    async def careless(self: Any, slot: int) -> None:
        coordinator, self._coordinator = self._coordinator, SimpleNamespace(bring=taken)
        try:
            await send(self, slot)
        finally:
            self._coordinator = coordinator

    patch(Handoff, "_send", careless)


def copied_without_tombstones(patch: Patch) -> None:
    merged = anti_entropy.merged

    def living(parts: list[Any]) -> Any:
        rows = merged(parts)
        return rows[rows[:, VERSION] & np.uint64(TOMBSTONE) == 0]

    patch(quorum_rows, "merged", living)


def agreement_does_not_travel(patch: Patch) -> None:
    async def nothing(self: Any, cluster_map: Any, dataset: str, partitions: Any) -> list[int]:
        return []

    patch(Moves, "_take_over_ranges", nothing)


def the_log_loses_its_end(patch: Patch) -> None:
    replay = wal.replay

    def short(*args: Any) -> Any:
        return iter(list(replay(*args))[:-1])

    patch(wal, "replay", short)


def writes_not_stamped_again(patch: Patch) -> None:
    def still(self: Any, count: int = 1) -> int:
        return self.now_ms() - EPOCH_MS << MS_SHIFT | 1 << SLOT_SHIFT

    patch(HybridClock, "stamp", still)


MUTANTS = {
    plant.__name__: Mutant(rule, plant, seed, *mix)
    for rule, plant, seed, *mix in (
        ("a target counts for the owners' quorum", targets_count_as_owners, 1),
        ("the epoch is not checked at the acknowledgement", epoch_unchecked_at_the_acknowledgement, 122),
        ("the clock's ceiling is not persisted", clock_ceiling_not_kept, 3, CLOCKS),
        ("a stale answer counts as an acknowledgement", stale_taken_for_accepted, 63),
        ("tombstones go before all owners agreed", tombstones_dropped_early, 3),
        ("a read is answered before W owners have it", reads_not_brought, 16),
        ("R - W replicas are read", read_quorum_one_short, 3),
        ("W - 1 owners acknowledge", write_quorum_one_short, 1),
        ("a write in a move does not wait for the targets", targets_not_waited_for, 38),
        ("a copy is made from one owner", copied_from_one_owner, 48),
        ("targets are read before they have copied", switched_before_all_have_copied, 1),
        ("a move goes on before the owners know the step before", steps_without_the_owners_knowing, 4),
        ("what was promised not to come is taken", promises_not_kept, 75, AWAY),
        ("owners are told that they agreed, and did not", agreed_without_comparing, 1),
        ("an owner drops what it is still asked for", dropped_while_it_is_read, 2),
        ("what was left over from before counts as held", what_is_left_over_counts_as_held, 23, SLOWLY),
        ("a replica takes work of an older epoch", nothing_fenced, 8, CUT_OFF),
        ("a node keeps its first map alone", newer_maps_not_kept, 22),
        ("a relocate takes effect on any version", relocates_on_any_version, 13),
        ("an insert does not look first", inserts_without_a_look, 3),
        ("an attempt seen at one replica counts as kept", left_behind_taken_for_kept, 37),
        ("what a replica may hold is reported as refused", attempts_forgotten, 6, CROWDED),
        ("a read in a move is not brought to the targets", reads_not_brought_to_targets, 113, LONELY),
        ("a fast miss is not confirmed", fast_misses_believed, 18),
        ("unavailable is told as absent", unavailable_told_as_absent, 3),
        ("the older version wins a merge", the_older_version_wins_a_copy, 5),
        ("a write is acknowledged though its sync failed", acknowledged_without_a_sync, 2),
        ("the map is changed without compare-and-swap", map_changed_without_comparing, 12),
        ("a removed node comes back by itself", removed_nodes_come_back, 49),
        ("a hint counts for the quorum", hints_counted_for_the_quorum, 1),
        ("a hint for an ex-owner is dropped", hints_for_ex_owners_dropped, 1),
        ("a copy leaves tombstones out", copied_without_tombstones, 16),
        ("what was agreed does not travel with a move", agreement_does_not_travel, 119, MOVING),
        ("a restart forgets the end of the log", the_log_loses_its_end, 2),
        ("stamps follow the wall clock alone", writes_not_stamped_again, 4),
        *MISTAKEN,
    )
}
"""By name."""


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Plant a fault for as long as the block lasts."""
    before: list[tuple[Any, str, Any]] = []

    def patch(place: Any, name: str, value: Any) -> None:
        before.append((place, name, place.__dict__[name]))
        setattr(place, name, value)

    mutant.plant(patch)
    try:
        yield
    finally:
        for place, name, value in reversed(before):
            setattr(place, name, value)


def first_kill(name: str, seeds_max: int = SEEDS_MAX) -> tuple[int, str]:
    """Return the first seed that notices a planted fault and what it says; 0 where none does."""
    mutant = MUTANTS[name]
    with planted(mutant):
        for seed in range(1, seeds_max + 1):
            violation = simulate(seed, mutant.mix).violation
            if violation:
                return seed, violation.splitlines()[-1]
    return 0, ""


def _fields(value: Any) -> list[str]:
    return list(value.__dataclass_fields__)


def main() -> None:
    """Print the first seed that kills each mutant, of those named or of all."""
    for name in sys.argv[1:] or MUTANTS:
        seed, said = first_kill(name)
        print(f"| {MUTANTS[name].rule} | {seed or f'none of {SEEDS_MAX}'} | {said[:110]} |", name, flush=True)


if __name__ == "__main__":
    main()
