"""The cluster map: who owns what, an immutable value with an epoch; every change of it is a pure function.

The map lies in etcd under one key; each change is a compare-and-swap of the whole. A partition is in a phase:

    STABLE     owners read and written
    COPYING    owners read; owners and targets written (W of each); targets copy (`incoming`)
    SWITCHED   targets read; owners and targets written
    STABLE     the targets are the owners

`changed` has, for each partition, the epoch of its last change: a replica refuses work that was planned on an
older one. What must be true before a step is `moves.py`'s business (docs/replication.md).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from typing import Annotated, Any, Literal

import lz4.block
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from kvmeta.errors import CorruptionError, InputError, NotFoundError
from kvmeta.mixing import DEFAULT_SEED
from kvmeta.version import SLOT_BITS
from kvmeta_server.cluster.history import NO_HISTORY, History, digest_of
from kvmeta_server.cluster.placement import NOBODY, Candidate, moved, place
from kvmeta_server.config import PARTITIONS_MAX, REPLICAS_MAX

FORMAT = 1
PARTITIONS = 4096
SLOTS_MAX = 1 << SLOT_BITS
_SIZE_BYTES = 4  # before an LZ4 block
_Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
STABLE, COPYING, SWITCHED = 0, 1, 2
MemberState = Literal["active", "draining", "removed"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """A member. `store_id` (hex) is that of its data directory: a node without its data is another node.

    `address` is "" where another has taken it over.
    """

    slot: int
    name: str
    address: str
    zone: str = ""
    weight: float = 1.0
    state: MemberState = "active"
    store_id: str = ""


def _by_slot(question: Callable[[ClusterMap, int], Mask]) -> Callable[[ClusterMap, int], Mask]:
    """Keep the answers to a question about a node: it is asked for every batch, and a map never changes."""
    place = f"_{question.__name__}"

    @wraps(question)
    def answer(cluster_map: ClusterMap, slot: int) -> Mask:
        known: dict[int, Mask] = cluster_map.__dict__.setdefault(place, {})
        if slot not in known:
            known[slot] = question(cluster_map, slot)
        return known[slot]

    return answer


@dataclass(frozen=True)
class ClusterMap:
    """The map at one epoch. `owners` and `targets` are u2[partitions, replicas] of slots."""

    name: str
    cluster_id: bytes
    epoch: int
    replicas: int
    write_quorum: int
    max_skew_ms: int
    members: tuple[Member, ...]
    owners: NDArray[np.uint16]
    targets: NDArray[np.uint16]
    phase: NDArray[np.uint8]
    changed: NDArray[np.uint64]
    seed: int = DEFAULT_SEED
    next_slot: int = 1
    history: History = NO_HISTORY
    """The digests of the maps that this one came from."""

    # Questions

    @property
    def partitions(self) -> int:
        """Return how many partitions there are."""
        return len(self.owners)

    @cached_property
    def shift(self) -> int:
        """Return by how many bits a mixed ID's high half is shifted to give its partition."""
        return 64 - (self.partitions.bit_length() - 1)

    @cached_property
    def by_slot(self) -> dict[int, Member]:
        """Return the nodes by slot."""
        return {member.slot: member for member in self.members}

    @cached_property
    def holders(self) -> tuple[int, ...]:
        """Return the slots of all that own something or are to own it."""
        named = np.unique(np.concatenate([self.owners.ravel(), self.targets.ravel()]))
        return tuple(named[named != NOBODY].tolist())

    @cached_property
    def moving(self) -> Mask:
        """Return bool[P]: whether a partition is on its way to other owners."""
        moving: Mask = self.phase != STABLE
        return moving

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Return bool[P, R]: which owners were not removed; fewer than a quorum only where it was forced."""
        removed = [member.slot for member in self.members if member.state == "removed"]
        alive: Mask = (self.owners != NOBODY) & ~np.isin(self.owners, removed)
        return alive

    @cached_property
    def readers(self) -> NDArray[np.uint16]:
        """Return u2[P, R]: who is read."""
        return np.where((self.phase == SWITCHED)[:, None], self.targets, self.owners)

    @cached_property
    def leaving(self) -> Mask:
        """Return bool[P, R]: which readers are not among the targets of a partition that is copied."""
        stays = (self.readers[:, :, None] == self.targets[:, None, :]).any(axis=2)
        leaving: Mask = ~stays & (self.phase == COPYING)[:, None]
        return leaving

    @cached_property
    def write_quorums(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return i8[P] twice: how many owners, and how many targets (stable: none), must have a write."""
        owners = np.minimum(np.minimum(self.write_quorum, _count(self.owners)), self.alive.sum(axis=1))
        targets = np.where(self.moving, np.minimum(self.write_quorum, _count(self.targets)), 0)
        return owners, targets

    @cached_property
    def read_quorum(self) -> NDArray[np.int64]:
        """Return i8[P]: how many readers must answer so that every acknowledged write is seen."""
        count = _count(self.readers)
        need = count - np.minimum(self.write_quorum, count) + 1
        there = np.where(self.phase == SWITCHED, count, self.alive.sum(axis=1))
        return np.minimum(need, np.maximum(there, 1))

    @_by_slot
    def read_at(self, slot: int) -> Mask:
        """Return bool[P]: whether a node is a reader of a partition."""
        read: Mask = (self.readers == slot).any(axis=1)
        return read

    @_by_slot
    def read_alone(self, slot: int) -> Mask:
        """Return bool[P]: whether a node alone is a read quorum of a partition."""
        alone: Mask = self.read_at(slot) & (self.read_quorum == 1)
        alone &= self.phase != COPYING  # there its targets need it, too
        return alone

    def partition_of(self, high: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return i8[n]: the partitions of high halves of mixed IDs."""
        return (
            (high >> np.uint64(self.shift)).astype(np.int64)
            if self.shift < 64
            else np.zeros(len(high), np.int64)
        )

    def stretch(self, partition: int) -> tuple[int, int]:
        """Return the first and the last high half of a partition."""
        return partition << self.shift, ((partition + 1) << self.shift) - 1

    @_by_slot
    def held_by(self, slot: int) -> Mask:
        """Return bool[P]: whether a node owns a partition or is to own it."""
        held: Mask = (self.owners == slot).any(axis=1)
        held |= self.moving & (self.targets == slot).any(axis=1)
        return held

    @_by_slot
    def incoming(self, slot: int) -> Mask:
        """Return bool[P]: what a node has to copy: what it is to own and does not.

        Where there are to be fewer owners than before, fewer of them are read: then those that own it already
        copy, too, what the others acknowledged without them.
        """
        to_own: Mask = (self.phase == COPYING) & (self.targets == slot).any(axis=1)
        to_own &= ~(self.owners == slot).any(axis=1) | (_count(self.targets) < _count(self.owners))
        return to_own

    def at(self, address: str) -> Member | None:
        """Return who has an address; None where nobody has."""
        return next((member for member in self.members if member.address == address), None)

    @cached_property
    def digest(self) -> int:
        """Return the digest of this map, its history included."""
        return digest_of(self.encode())

    def descends_from(self, epoch: int, digest: int) -> bool:
        """Return whether this map, or one that it came from, is that of an epoch and a digest.

        Of what lies further back than the history goes nothing is known: then it is taken to be so.
        """
        if epoch == self.epoch:
            return digest == self.digest
        return epoch < self.epoch and self.history.has(self.epoch - epoch, digest)

    def member(self, name: str) -> Member:
        """Return a node by name; NotFoundError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(sorted(member.name for member in self.members))
        raise NotFoundError(f"cluster {self.name!r} has no node {name!r} (it has: {known})")

    @cached_property
    def unplaced(self) -> Mask:
        """Return bool[P]: whether a partition is not yet where it belongs, on its way or not."""
        return self.moving | ~_same_sets(self.owners, self.planned)

    @cached_property
    def planned(self) -> NDArray[np.uint16]:
        """Return where everything belongs, over the nodes that are to stay."""
        stay = [
            Candidate(member.slot, member.name, member.zone, member.weight)
            for member in self.members
            if member.state == "active"
        ]
        return _placed(tuple(stay), self.partitions, self.replicas)

    # Changes: each returns the next map

    def joined(self, member: Member) -> ClusterMap:
        """Return the map with another node; its slot is given here."""
        if any(each.name == member.name for each in self.members):
            raise InputError(
                f"cluster {self.name!r} has a node {member.name!r} already; give this one another --node name"
            )
        taken = {each.slot for each in self.members}
        free = [
            slot
            for slot in range(self.next_slot, self.next_slot + SLOTS_MAX)
            if slot % SLOTS_MAX not in taken
        ]
        if not free:
            raise InputError(f"cluster {self.name!r} has {len(taken)} nodes; that is all there are slots for")
        slot = free[0] % SLOTS_MAX
        members = (*_without_address(self.members, member.address), replace(member, slot=slot))
        return self._with(members=members, next_slot=slot + 1).replanned()

    def with_member(self, name: str, **fields: Any) -> ClusterMap:
        """Return the map with some fields of a node changed, moves planned anew."""
        self.member(name)
        others = _without_address(self.members, fields.get("address", ""))
        members = tuple(replace(member, **fields) if member.name == name else member for member in others)
        return self._with(members=members).replanned()

    def replanned(self) -> ClusterMap:
        """Return the map with every partition that has not switched on its way to where it belongs."""
        planned = self.planned
        free = self.phase != SWITCHED
        away = free & ~_same_sets(self.owners, planned)
        planned = np.where(away[:, None], planned, self.targets)
        planned = np.where((free & ~away)[:, None], self.owners, planned)
        phase = np.where(away, COPYING, np.where(free, STABLE, self.phase)).astype(np.uint8)
        touched = (phase != self.phase) | (planned != self.targets).any(axis=1)
        return self._with(targets=planned.astype(np.uint16), phase=phase, touched=touched)._without_idle()

    def switched(self, which: Iterable[int]) -> ClusterMap:
        """Return the map with copied partitions read at their targets."""
        return self._stepped(which, COPYING, SWITCHED)

    def finished(self, which: Iterable[int]) -> ClusterMap:
        """Return the map with switched partitions owned by their targets; nodes that own nothing may go."""
        mask = self._mask(which, SWITCHED)
        owners = np.where(mask[:, None], self.targets, self.owners)
        phase = np.where(mask, STABLE, self.phase).astype(np.uint8)
        return self._with(owners=owners, phase=phase, touched=mask)._without_idle()

    def recovered(self, epoch: int) -> ClusterMap:
        """Return the map as its own continuation, with an epoch above one that it is put in the place of."""
        gap = max(0, epoch - self.epoch)
        history = self.history.with_next(self.digest).with_gap(gap)
        return replace(self, epoch=self.epoch + gap + 1, history=history)

    def _without_idle(self) -> ClusterMap:
        """Return the map without the nodes that are to go and own nothing any more."""
        members = tuple(
            member for member in self.members if member.state == "active" or member.slot in self.holders
        )
        return replace(self, members=members)

    def _stepped(self, which: Iterable[int], before: int, after: int) -> ClusterMap:
        mask = self._mask(which, before)
        phase = np.where(mask, after, self.phase).astype(np.uint8)
        return self._with(phase=phase, touched=mask)

    def _mask(self, which: Iterable[int], phase: int) -> Mask:
        mask = np.zeros(self.partitions, np.bool_)
        mask[list(which)] = True
        mask &= self.phase == phase
        return mask

    def _with(self, *, touched: Mask | None = None, **fields: Any) -> ClusterMap:
        epoch = self.epoch + 1
        if touched is not None:
            fields["changed"] = np.where(touched, np.uint64(epoch), self.changed)
        return replace(self, epoch=epoch, history=self.history.with_next(self.digest), **fields)

    # As bytes

    def encode(self) -> bytes:
        """Return the map as JSON; its arrays as base64 of an LZ4 block.

        A map that was decoded is the bytes it was: its digest is theirs.
        """
        return self._raw

    @cached_property
    def _raw(self) -> bytes:
        fields = {
            "format": FORMAT, "name": self.name, "cluster_id": self.cluster_id.hex(), "epoch": self.epoch,
            "partitions": self.partitions, "replicas": self.replicas, "write_quorum": self.write_quorum,
            "max_skew_ms": self.max_skew_ms, "seed": f"{self.seed:016x}", "next_slot": self.next_slot,
            "nodes": [vars(member) for member in self.members],
            "owners": _packed(self.owners), "targets": _packed(self.targets),
            "phase": _packed(self.phase), "changed": _packed(self.changed), "history": self.history.text(),
        }  # fmt: skip
        return json.dumps(fields).encode()


class _Format(msgspec.Struct):
    """What every format of a map says."""

    format: int


class _Encoded(msgspec.Struct, forbid_unknown_fields=True):
    """A map's JSON."""

    format: Annotated[int, Meta(ge=1)]
    name: str
    cluster_id: str
    epoch: _Natural
    partitions: Annotated[int, Meta(ge=1, le=PARTITIONS_MAX)]
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)]
    write_quorum: int
    max_skew_ms: _Natural
    seed: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    next_slot: Annotated[int, Meta(ge=0, le=SLOTS_MAX)]
    members: tuple[Member, ...] = msgspec.field(name="nodes")  # the document's older name for its rows
    owners: str
    targets: str
    phase: str
    changed: str
    history: str = ""


@lru_cache(maxsize=4)  # a node meets each map several times: as its change, as news, as what it remembers
def decode(raw: bytes) -> ClusterMap:
    """Return the map in `raw`; CorruptionError where it is none, or of a newer format."""
    try:
        found_format = msgspec.json.decode(raw, type=_Format).format
        if found_format > FORMAT:
            raise ValueError(f"format {found_format}; this package reads up to {FORMAT}: upgrade kvmeta")
        fields = msgspec.json.decode(raw, type=_Encoded)
        shape = (fields.partitions, fields.replicas)
        decoded = ClusterMap(
            name=fields.name,
            cluster_id=bytes.fromhex(fields.cluster_id),
            epoch=fields.epoch,
            replicas=fields.replicas,
            write_quorum=fields.write_quorum,
            max_skew_ms=fields.max_skew_ms,
            members=fields.members,
            owners=_unpacked(fields.owners, "<u2", shape),
            targets=_unpacked(fields.targets, "<u2", shape),
            phase=_unpacked(fields.phase, "u1", shape[:1]),
            changed=_unpacked(fields.changed, "<u8", shape[:1]),
            seed=int(fields.seed, 16),
            next_slot=fields.next_slot,
            history=History.of(fields.history),
        )
        _check(decoded)
    except (msgspec.MsgspecError, ValueError, RecursionError, lz4.block.LZ4BlockError) as error:
        raise CorruptionError(f"not a cluster map: {error!r}") from None
    decoded.__dict__["_raw"] = raw
    return decoded


def _check(decoded: ClusterMap) -> None:
    """Raise ValueError where a map's parts contradict each other."""
    if decoded.partitions & (decoded.partitions - 1):
        raise ValueError(f"{decoded.partitions} partitions are no power of two")
    if not _is_majority(decoded.write_quorum, decoded.replicas):
        raise ValueError(f"write quorum {decoded.write_quorum} of {decoded.replicas} replicas")
    if (decoded.phase > SWITCHED).any():
        raise ValueError(f"phase {decoded.phase.max()}")
    slots = [member.slot for member in decoded.members]
    if len(decoded.by_slot) != len(slots) or not all(0 <= slot < SLOTS_MAX for slot in slots):
        raise ValueError(f"slots {slots}")


def found(
    name: str,
    cluster_id: bytes,
    first: Member,
    *,
    partitions: int = PARTITIONS,
    replicas: int = 3,
    write_quorum: int = 2,
    max_skew_ms: int = 60_000,
) -> ClusterMap:
    """Return the first map of a cluster, of one node that owns everything."""
    if not _is_majority(write_quorum, replicas):
        raise InputError(
            f"write quorum: expected more than half of {replicas} replicas, at most all, got {write_quorum}"
        )
    owners = place([Candidate(0, first.name, first.zone, first.weight)], partitions, replicas)
    epochs = np.ones(partitions, np.uint64)
    return ClusterMap(
        name, cluster_id, 1, replicas, write_quorum, max_skew_ms, (replace(first, slot=0),),
        owners, owners, np.zeros(partitions, np.uint8), epochs,
    )  # fmt: skip


def _is_majority(write_quorum: int, replicas: int) -> bool:
    return replicas // 2 < write_quorum <= replicas


@lru_cache(maxsize=64)  # most maps differ in the phases of their partitions, and not in their nodes
def _placed(candidates: tuple[Candidate, ...], partitions: int, replicas: int) -> NDArray[np.uint16]:
    owners = place(candidates, partitions, replicas)
    owners.flags.writeable = False
    return owners


def _without_address(members: tuple[Member, ...], address: str) -> tuple[Member, ...]:
    """Return members of which none has `address`: two never have the same."""
    if not address:
        return members
    return tuple(replace(each, address="") if each.address == address else each for each in members)


def copies(cluster_map: ClusterMap) -> int:
    """Return how many replicas are to be copied."""
    return moved(cluster_map.owners, cluster_map.targets)


def _count(slots: NDArray[np.uint16]) -> NDArray[np.int64]:
    count: NDArray[np.int64] = (slots != NOBODY).sum(axis=1)
    return count


def _same_sets(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> Mask:
    same: Mask = (np.sort(a, axis=1) == np.sort(b, axis=1)).all(axis=1)
    return same


def _packed(column: NDArray[Any]) -> str:
    return base64.b64encode(lz4.block.compress(column.tobytes())).decode()


def _unpacked(text: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array of `shape`; nothing larger is allocated for it."""
    block = base64.b64decode(text)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if int.from_bytes(block[:_SIZE_BYTES], "little") != size:
        raise ValueError(f"an array of {size} bytes says another size")
    return np.frombuffer(lz4.block.decompress(block), dtype).reshape(shape)
