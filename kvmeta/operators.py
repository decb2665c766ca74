"""A cluster, as its operators see it: who is in it, what moves, and how to change that.

    with kvmeta.operators.open("kvmeta://localhost:7400") as cluster:
        cluster.status().members
        cluster.drain("n3")

Any node answers. Changes are written to etcd; the moves that follow are the nodes' own work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from types import TracebackType
from typing import Any, Self, TypeVar

from kvmeta.client.calls import Program, ask, call_of, send
from kvmeta.client.connections import Connection
from kvmeta.client.options import ClientOptions
from kvmeta.client.routing import Route
from kvmeta.errors import UnsupportedError
from kvmeta.v1 import cluster_pb2 as pb
from kvmeta.v1.kvmeta_pb2 import GetMapRequest

T = TypeVar("T")
REPAIR_S = 3540.0
"""How long a repair may take, node by node. Less than an hour: servers take no longer deadline as one."""


@dataclass(frozen=True)
class Member:
    """A row of the map, and the node behind it, whose figures are 0 where it did not answer (`answered`).

    `hinted` rows wait on it for other nodes, `waiting` rows on other nodes for it; `hints_dropped` rows it
    could not keep for others since it started. `agreed`: partitions that all owners agreed on once.
    """

    slot: int
    name: str
    address: str
    zone: str
    weight: float
    state: str
    live: bool
    answered: bool
    epoch: int
    owned: int
    incoming: int
    hinted: int
    leftover: int
    clock_ms: int
    rows_copied: int
    agreed: int
    damaged: int
    mended: int
    waiting: int
    hints_dropped: int


@dataclass(frozen=True)
class Status:
    """A cluster, as the node asked sees it."""

    name: str
    cluster: str
    epoch: int
    partitions: int
    replicas: int
    write_quorum: int
    moving: int
    etcd: bool
    unavailable: int
    members: tuple[Member, ...] = field(default=())
    refusal: str = ""
    """Why the node asked does not believe what etcd holds; "" where it does."""
    fenced: str = ""
    """Why the node asked takes no part; "" where it does."""


@dataclass(frozen=True)
class Changed:
    """A change that is under way: the map's epoch with it, and the replicas to be copied."""

    epoch: int
    moves: int


@dataclass(frozen=True)
class Repaired:
    """What a repair did: partitions compared, rows sent, partitions passed over for an owner that is away.

    Each dataset's partitions are counted: `partitions` and `skipped` make `datasets` times those of the map.
    """

    partitions: int
    rows: int
    skipped: int
    datasets: int


@dataclass(frozen=True)
class Recovery:
    """What a recovery of etcd puts back, or put back where it is `done`.

    `reason` says why the node asked does not believe etcd; "" where it does: then there is nothing to do.
    `epoch` and `serial` are those of the newest map and tables that members remember, `epoch_there` and
    `serial_there` those in etcd (0: none). `silent` are the members that did not answer. `strangers` are
    members that only etcd's map has: they have to join anew. `plan` names it for `Cluster.recover`.
    """

    reason: str
    epoch: int
    epoch_there: int
    serial: int
    serial_there: int
    silent: tuple[str, ...]
    members: tuple[str, ...]
    strangers: tuple[str, ...]
    datasets_back: tuple[str, ...]
    datasets_gone: tuple[str, ...]
    volumes: int
    epoch_new: int
    next_dataset: int
    next_volume: int
    plan: int
    done: bool


class Cluster:
    """A connection to a cluster for its operators. Use it as a context manager or call `close`."""

    def __init__(self, target: str, options: ClientOptions | None = None) -> None:
        self._connection = Connection(target, options or ClientOptions())

    def _run(self, program: Program[T], timeout_s: float | None = None) -> T:
        try:
            return self._connection.run(program, timeout_s)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self._connection.target} is no node of a cluster ({error})") from None

    def status(self) -> Status:
        """Return how the cluster is."""
        reply = self._run(ask("GetStatus", pb.GetStatusRequest()))
        members = tuple(Member(**_fields(member)) for member in reply.members)
        told = _fields(reply)
        return Status(**{**told, "cluster": reply.cluster.hex(), "members": members})

    def drain(self, node: str, *, force: bool = False) -> Changed:
        """Move everything off a node; it leaves the cluster when that is done."""
        return self._change(pb.CHANGE_DRAIN, node, force=force)

    def undrain(self, node: str) -> Changed:
        """Let a node stay that is being drained."""
        return self._change(pb.CHANGE_UNDRAIN, node)

    def remove(self, node: str, *, force: bool = False) -> Changed:
        """Take a dead node out; the others copy what it held from the replicas that are left."""
        return self._change(pb.CHANGE_REMOVE, node, force=force)

    def rebalance(self) -> Changed:
        """Place all partitions anew over the nodes there are."""
        return self._change(pb.CHANGE_REBALANCE, "")

    def set_weight(self, node: str, weight: float) -> Changed:
        """Change a node's share."""
        return self._change(pb.CHANGE_WEIGHT, node, weight=weight)

    def repair(self, dataset: str = "", progress: Callable[[int, int], None] | None = None) -> Repaired:
        """Compare all replicas now, dataset by dataset; each node does what it is the first owner of."""
        told = self.status().members
        members = [member for member in told if member.answered]
        absent = {member.name for member in told if not member.answered}
        first_away = sum(owners[0] in absent for owners in self.owners())
        datasets = [dataset] if dataset else self._run(self._connection.programs.datasets())
        partitions = rows = skipped = 0
        for done, (name, member) in enumerate(product(datasets, members)):
            if progress is not None:
                progress(done, len(datasets) * len(members))
            request = pb.RepairRequest(dataset=name)
            reply = self._run(ask("Repair", request, (member.address,)), REPAIR_S)
            partitions, rows = partitions + reply.partitions, rows + reply.rows
            skipped += reply.skipped
        return Repaired(partitions, rows, skipped + first_away * len(datasets), len(datasets))

    def recover(self, plan: int = 0) -> Recovery:
        """Return what a recovery of etcd would put back; with the `plan` of what was returned then, do it."""
        told = self._run(ask("Recover", pb.RecoverRequest(plan=plan)), REPAIR_S)
        fields: dict[str, Any] = {
            name: value if isinstance(value, (int, str)) else tuple(value)
            for name, value in _fields(told).items()
        }
        return Recovery(**fields)

    def owners(self) -> list[list[str]]:
        """Return the names of each partition's owners, in the order in which they are asked."""
        routes: list[Route] = []
        call = call_of("GetMap", GetMapRequest(), lambda reply: routes.append(Route.of(reply)))
        self._run(send(call))
        route = routes[0]
        names = {member.slot: member.name for member in self.status().members}
        return [[names.get(slot, "-") for slot in row] for row in route.owners.tolist()]

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def _change(self, change: pb.Change, node: str, *, weight: float = 0.0, force: bool = False) -> Changed:
        request = pb.ChangeMembersRequest(change=change, node=node, weight=weight, force=force)
        reply = self._run(ask("ChangeMembers", request))
        return Changed(reply.epoch, reply.moves)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(target: str, *, options: ClientOptions | None = None) -> Cluster:  # noqa: A001 - as kvmeta.open
    """Return the cluster behind "kvmeta://host:port,…"."""
    return Cluster(target, options)


def _fields(message: Any) -> dict[str, Any]:
    return {each.name: getattr(message, each.name) for each in message.DESCRIPTOR.fields}
