"""How many machines a catalogue needs: arithmetic on measured figures, every step of it told.

The figures are in measured.json, made from the benchmarks' results by `python -m bench.results_page`. They
are those of one small machine, client and server sharing its cores, so a plan errs on the safe side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from kvmeta.cli import render
from kvmeta.errors import InputError

Adder = Callable[[str, str, float, str], float]
"""Takes name, arithmetic, value and unit of a step, and returns the value."""

UPPER_SHARE = 1 / 8
"""Of the bottom run's rows: what newer runs may hold before they are merged into it (`bottom_ratio`)."""
DISK_FILL = 0.8
"""How full a disk may become, so that a merge has room and a lost node's share can be taken over."""
IMBALANCE = 1.05
"""The fullest node against the mean: partitions are placed by rendezvous hashing with bounded load."""
MEMTABLES = 3
MEMTABLE_BYTES = 56 << 20
"""One is written to, two may wait to be flushed; each has 1,048,576 rows of 48 bytes and 8 MiB of slots."""
ENTRY_BYTES = 40
"""An ID and a location, as they travel."""
NETWORK_BYTES_PER_S = 1.25e9


@dataclass(frozen=True)
class Measured:
    """What one node was measured to do: rates a second, bytes and seconds an entry."""

    machine: str
    date: str
    entries: int
    """Of the store that was measured."""
    disk_bytes_per_entry: float
    memory_bytes_per_entry: float
    process_bytes: float
    """Of a server with an empty store."""
    warm_lookups_per_s: float
    cold_lookups_per_s: float
    puts_per_s: float
    """Durable ones, the merges they cause waited for."""
    load_per_s: float
    start_s: float
    """Of a server process."""
    open_s_per_entry: float
    """Its files cold."""
    replay_s: float
    """Of a full memtable's log."""


@dataclass(frozen=True)
class Demand:
    """What is asked for; None where a machine's size is not known."""

    files: int
    replicas: int = 3
    lookups_per_s: float = 0.0
    puts_per_s: float = 0.0
    disk_bytes: float | None = None
    """Of one node."""
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("files", 1), ("replicas", 1), ("lookups_per_s", 0), ("puts_per_s", 0)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise InputError(f"{name}: expected at least {least}, got {value}")
        for name in ("disk_bytes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}: expected more than 0, got {value}")


@dataclass(frozen=True)
class Step:
    """One line of the arithmetic: what, from what, how much."""

    name: str
    arithmetic: str
    value: float
    unit: str


@dataclass(frozen=True)
class Plan:
    """What is needed; figures with "node" are those of the fullest one."""

    nodes: int
    warm: bool
    """Whether all of a node's share is counted on to be in memory."""
    entries_per_node: int
    disk_bytes_per_node: float
    memory_bytes_per_node: float
    """What the process needs; the page cache is besides it."""
    page_cache_bytes_per_node: float
    """What makes every lookup warm."""
    restart_s: float
    rebuild_s: float
    steps: tuple[Step, ...]


def measured() -> Measured:
    """Return the figures this version was measured to have."""
    text = files("kvmeta.cli").joinpath("measured.json").read_text()
    return Measured(**json.loads(text))


def plan(demand: Demand, of: Measured) -> Plan:
    """Return what `demand` needs."""
    steps: list[Step] = []

    def step(name: str, arithmetic: str, value: float, unit: str) -> float:
        steps.append(Step(name, arithmetic, value, unit))
        return value

    replicas = demand.replicas
    entries = demand.files * replicas
    step("entries", f"{demand.files:,} files x {replicas} replicas", entries, "entries")
    disk_each = of.disk_bytes_per_entry * (1 + UPPER_SHARE)
    disk = step(
        "disk",
        f"{entries:.4g} x {of.disk_bytes_per_entry:.3g} B x {1 + UPPER_SHARE:g} (runs not yet merged)",
        entries * disk_each,
        "bytes",
    )
    nodes = float(step("nodes to keep every replica apart", f"{replicas} replicas", replicas, "nodes"))
    if demand.disk_bytes is not None:
        usable = demand.disk_bytes * DISK_FILL / IMBALANCE
        sums = f"/ ({_size(demand.disk_bytes)} x {DISK_FILL:g} full / {IMBALANCE:g} imbalance)"
        nodes = max(nodes, step("nodes for disk", f"{_size(disk)} {sums}", math.ceil(disk / usable), "nodes"))
    if demand.puts_per_s:
        sums = f"{demand.puts_per_s:,.0f} puts/s x {replicas} replicas / {of.puts_per_s:,.0f} a node"
        need = math.ceil(demand.puts_per_s * replicas / of.puts_per_s)
        nodes = max(nodes, step("nodes for puts", sums, need, "nodes"))
    nodes, warm = _nodes_for_lookups(demand, of, nodes, disk, step)

    share = math.ceil(entries * IMBALANCE / nodes)
    step("entries, fullest node", f"{entries:.4g} x {IMBALANCE:g} / {nodes:,.0f}", share, "entries")
    disk_node = step("disk, fullest node", f"{share:.4g} x {disk_each:.3g} B", share * disk_each, "bytes")
    memory = step(
        "memory, fullest node",
        f"{_size(of.process_bytes)} + {MEMTABLES} memtables x {_size(MEMTABLE_BYTES)}"
        f" + {share:.4g} x {of.memory_bytes_per_entry:.2g} B",
        of.process_bytes + MEMTABLES * MEMTABLE_BYTES + share * of.memory_bytes_per_entry,
        "bytes",
    )
    restart = step(
        "restart",
        f"{of.start_s:.2g} s to start + {of.replay_s:.2g} s of log"
        f" + {share:.4g} x {of.open_s_per_entry * 1e9:.2g} ns",
        of.start_s + of.replay_s + share * of.open_s_per_entry,
        "s",
    )
    rate = min(of.load_per_s, NETWORK_BYTES_PER_S / ENTRY_BYTES)
    rebuild = step("rebuild of a lost node", f"{share:.4g} / {rate:,.0f} entries/s", share / rate, "s")
    return Plan(
        nodes=int(nodes), warm=warm, entries_per_node=share, disk_bytes_per_node=disk_node,
        memory_bytes_per_node=memory, page_cache_bytes_per_node=disk_node, restart_s=restart,
        rebuild_s=rebuild, steps=tuple(steps),
    )  # fmt: skip


def _nodes_for_lookups(
    demand: Demand, of: Measured, least: float, disk: float, step: Adder
) -> tuple[float, bool]:
    """Return the nodes needed with the lookups, and whether these find their pages in memory.

    More nodes leave each a smaller share, which may then fit into memory: the way of fewer nodes is taken.
    """
    asked = demand.lookups_per_s * read_quorum(demand.replicas)
    cold_need = math.ceil(asked / of.cold_lookups_per_s)
    warm_need = math.ceil(asked / of.warm_lookups_per_s)
    room = (demand.memory_bytes or 0) - of.process_bytes - MEMTABLES * MEMTABLE_BYTES
    memory_need = math.ceil(disk * IMBALANCE / room) if room > 0 else math.inf
    warm = max(least, warm_need, memory_need) <= max(least, cold_need)
    sums = f"{demand.lookups_per_s:,.0f} lookups/s x {read_quorum(demand.replicas)} replicas asked"
    if warm:
        step(
            "nodes to hold all in memory",
            f"{_size(disk)} x {IMBALANCE:g} / {_size(room)}",
            memory_need,
            "nodes",
        )
        if asked:
            step("nodes for lookups", f"{sums} / {of.warm_lookups_per_s:,.0f} a node", warm_need, "nodes")
        return max(least, warm_need, memory_need), True
    if asked:
        sums += f" / {of.cold_lookups_per_s:,.0f} a node, each a device read"
        step("nodes for lookups", sums, cold_need, "nodes")
    return max(least, cold_need), False


def read_quorum(replicas: int) -> int:
    """Return how many replicas a lookup asks so that it meets every acknowledged write (R - W + 1)."""
    return replicas - (replicas // 2 + 1) + 1


def _size(n: float) -> str:
    return render.size(math.ceil(n))
