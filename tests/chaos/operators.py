"""An operator on the clients' host: looks how the cluster is and waits until it is as it should be.

What waits returns "" when it is so, and what is not so when the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle

import kvmeta
import kvmeta.cluster
from bench.replicas import differing
from kvmeta.client.options import addresses_of
from kvmeta.cluster import Status
from kvmeta.errors import KvmetaError


class Operator:
    """Asks one node after the other, until one answers."""

    def __init__(self, target: str) -> None:
        self._target = target
        options = kvmeta.ClientOptions(timeout_s=3, connect_timeout_s=1)
        nodes = [f"kvmeta://{address}" for address in addresses_of(target)]
        self._views = cycle([kvmeta.cluster.open(node, options=options) for node in nodes])

    def joined(self, names: list[str], timeout_s: float) -> str:
        """Wait until these nodes, and no others, are members and nothing moves; return what is not so."""

        def fault(status: Status) -> str:
            members = sorted(member.name for member in status.members)
            if members != sorted(names):
                return f"members are {', '.join(members)}"
            return f"{status.moving} partitions move" if status.moving else ""

        return self._until(fault, timeout_s)

    def left(self, name: str, timeout_s: float) -> str:
        """Wait until a node is no member any more; return what is not so."""

        def fault(status: Status) -> str:
            return f"{name} is a member" if name in {member.name for member in status.members} else ""

        return self._until(fault, timeout_s)

    def settled(self, timeout_s: float) -> str:
        """Wait until all members answer, nothing moves and no hint waits; return what is not so."""

        def fault(status: Status) -> str:
            silent = [member.name for member in status.members if not (member.answered and member.live)]
            hints = {member.name: member.hinted for member in status.members if member.hinted}
            left = {member.name: member.leftover for member in status.members if member.leftover}
            if silent or hints or left or status.moving or status.unavailable:
                return f"{silent=} {hints=} {left=} {status.moving=} {status.unavailable=}"
            return ""

        return self._until(fault, timeout_s)

    def differing(self) -> int:
        """Return how many partitions have replicas that differ."""
        return differing(self._target)

    def _until(self, fault: Callable[[Status], str], timeout_s: float) -> str:
        end = time.monotonic() + timeout_s
        while True:
            try:
                told = fault(next(self._views).status())
            except KvmetaError as error:
                told = str(error)
            if not told or time.monotonic() > end:
                return told
            time.sleep(1.0)
