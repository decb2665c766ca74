"""Placement: which nodes own each partition. A pure function of the nodes; no I/O, no floats, no chance.

Weighted rendezvous hashing (Thaler & Ravishankar, 1998; weights after Schindelhauer & Schomaker, 2005): every
pair of partition and node has a cost, -log2(u) / weight with u a hash of the pair in (0, 1], and a partition
goes to the nodes of least cost. Loads are bounded (Mirrokni, Thorup & Zadimoghaddam, 2018): pairs are taken
from the cheapest on, and a node takes no more than its share and 4%. A node that comes or goes changes only
its own costs, so little else moves. Costs are integers, logarithms too: every machine gets the same map.

Replicas of a partition lie in distinct zones as far as there are zones, and always on distinct nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvmeta.errors import InputError
from kvmeta.mixing import finalise

NOBODY = 0xFFFF
"""A place for which there is no node."""
WEIGHT_MAX = 1000.0
SLACK = 0.04
"""What a node may own above its share."""

_LOG_BITS = 20
_WEIGHT_ONE = 1000
U = np.uint64


class Candidate(NamedTuple):
    """A node that may own partitions: `slot` names it in the map, `name` gives its hash."""

    slot: int
    name: str
    zone: str
    weight: float = 1.0


def place(candidates: Sequence[Candidate], partitions: int, replicas: int) -> NDArray[np.uint16]:
    """Return the owners' slots u2[partitions, replicas], cheapest first; NOBODY where nodes are too few."""
    nodes = sorted(candidates)
    _check(nodes, partitions, replicas)
    owners = np.full((partitions, replicas), NOBODY, np.uint16)
    if not nodes:
        return owners
    costs = _costs(nodes, partitions)
    zones = sorted({node.zone for node in nodes})
    zone_of = [zones.index(node.zone) for node in nodes]
    copies = min(replicas, len(nodes))
    zone_copies = -(-copies // len(zones))
    room = _room(nodes, zone_of, partitions, copies, zone_copies)
    chosen = _assign(costs, zone_of, room, copies, zone_copies)
    for partition, numbers in enumerate(chosen):
        numbers.sort(key=lambda number: (int(costs[partition, number]), number))
        owners[partition, : len(numbers)] = [nodes[number].slot for number in numbers]
    return owners


def moved(before: NDArray[np.uint16], after: NDArray[np.uint16]) -> int:
    """Return how many replicas have to be copied to get from one map to another."""
    held = (after[:, :, None] == before[:, None, :]).any(axis=2)
    return int((~held & (after != NOBODY)).sum())


def _check(nodes: Sequence[Candidate], partitions: int, replicas: int) -> None:
    if partitions < 1 or partitions & (partitions - 1) or partitions > 1 << 16:
        raise InputError(f"partitions: expected a power of two up to 65,536, got {partitions}")
    if replicas < 1:
        raise InputError(f"replicas: expected at least 1, got {replicas}")
    for node in nodes:
        if not 1 / _WEIGHT_ONE <= node.weight <= WEIGHT_MAX:
            raise InputError(f"node {node.name}: expected a weight from 0.001 to 1,000, got {node.weight}")


def _costs(nodes: Sequence[Candidate], partitions: int) -> NDArray[np.uint64]:
    """Return the cost u8[partitions, nodes] of each pair."""
    names = np.array([_hash(node.name) for node in nodes], np.uint64)
    weights = np.array([round(node.weight * _WEIGHT_ONE) for node in nodes], np.uint64)
    numbers = np.arange(partitions, dtype=np.uint64)[:, None]
    drawn = finalise(names[None, :] ^ finalise(numbers + U(1))) >> U(32)
    return (_minus_log2(drawn + U(1)) << U(32)) // weights[None, :]


def _hash(name: str) -> int:
    """Return FNV-1a (64 bits, Fowler, Noll & Vo) of a name."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & ((1 << 64) - 1)
    return value


def _minus_log2(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return -log2(x / 2**32) of x in [1, 2**32] with 20 bits behind the point: bit by bit, by squaring."""
    whole = np.zeros_like(x)
    rest = x.copy()
    for bits in (16, 8, 4, 2, 1):
        large = rest >= U(1) << U(bits)
        whole[large] += U(bits)
        rest[large] >>= U(bits)
    whole += (rest >= U(2)).astype(np.uint64)
    mantissa = x << (U(32) - whole) >> U(1)  # in [2**31, 2**32)
    log = whole
    for _ in range(_LOG_BITS):
        mantissa = mantissa * mantissa >> U(31)
        bit = mantissa >> U(32)
        mantissa >>= bit
        log = log << U(1) | bit
    return (U(32) << U(_LOG_BITS)) - log


def _room(
    nodes: Sequence[Candidate], zone_of: Sequence[int], partitions: int, copies: int, zone_copies: int
) -> list[int]:
    """Return how many partitions each node may own: its share of all replicas and `SLACK`."""
    weights = [node.weight for node in nodes]
    zone_weights = Counter[int]()
    for zone, weight in zip(zone_of, weights, strict=True):
        zone_weights[zone] += weight  # type: ignore[assignment]
    zones = sorted(zone_weights)
    members = Counter(zone_of)
    limits = [min(zone_copies, members[zone]) for zone in zones]
    zone_shares = _shares([zone_weights[zone] for zone in zones], limits, copies)
    room = [0] * len(nodes)
    for zone, share in zip(zones, zone_shares, strict=True):
        numbers = [number for number, each in enumerate(zone_of) if each == zone]
        shares = _shares([weights[number] for number in numbers], [1] * len(numbers), share)
        for number, own in zip(numbers, shares, strict=True):
            room[number] = min(partitions, int(own * partitions * (1 + SLACK)) + 1)
    return room


def _shares(weights: Sequence[float], limits: Sequence[float], total: float) -> list[float]:
    """Return parts of `total` in proportion to the weights, none beyond its limit."""
    shares = [0.0] * len(weights)
    free = set(range(len(weights)))
    while free and total > 1e-12:
        whole = sum(weights[i] for i in sorted(free))
        full = [i for i in sorted(free) if total * weights[i] / whole >= limits[i]]
        if not full:
            for i in free:
                shares[i] = total * weights[i] / whole
            break
        for i in full:
            shares[i] = limits[i]
            total -= limits[i]
            free.remove(i)
    return shares


def _assign(
    costs: NDArray[np.uint64], zone_of: Sequence[int], room: list[int], copies: int, zone_copies: int
) -> list[list[int]]:
    """Return the nodes of each partition: the cheapest pairs that there is room for, all over."""
    partitions, count = costs.shape
    chosen: list[list[int]] = [[] for _ in range(partitions)]
    order = np.argsort(costs, axis=None, kind="stable")
    left = partitions * copies
    zones = len(set(zone_of))
    for pair in order.tolist():
        partition, number = divmod(pair, count)
        mine = chosen[partition]
        if len(mine) == copies or not room[number]:
            continue
        if _crowded([zone_of[each] for each in mine], zone_of[number], zones, copies, zone_copies):
            continue
        mine.append(number)
        room[number] -= 1
        left -= 1
        if not left:
            return chosen
    for partition, mine in enumerate(chosen):  # what found no room: where most is left, in order of cost
        while len(mine) < copies:
            used = [zone_of[each] for each in mine]
            mine.append(
                min(
                    (number for number in range(count) if number not in mine),
                    key=lambda number: (
                        _crowded(used, zone_of[number], zones, copies, zone_copies),
                        -room[number],
                        int(costs[partition, number]),
                    ),
                )
            )
            room[mine[-1]] -= 1
    return chosen


def _crowded(used: Sequence[int], zone: int, zones: int, copies: int, zone_copies: int) -> bool:
    """Return whether another replica in `zone` would be one too many beside those in the zones `used`."""
    held = used.count(zone)
    if held >= zone_copies:
        return True
    return held > 0 and copies - len(used) <= min(copies, zones) - len(set(used))
