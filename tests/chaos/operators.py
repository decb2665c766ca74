"""An operator on the clients' host: changes the cluster, and waits until it is as it should be.

What waits returns "" when it is so, and what is not so when the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import kvmeta
import kvmeta.operators
from bench.replicas import differing
from kvmeta.client.options import addresses_of
from kvmeta.errors import KvmetaError, NotFoundError
from kvmeta.operators import Cluster


class Operator:
    """Asks one node after the other, until one answers."""

    def __init__(self, target: str) -> None:
        self._target = target
        options = kvmeta.ClientOptions(timeout_s=3, connect_timeout_s=1)
        nodes = [f"kvmeta://{address}" for address in addresses_of(target)]
        self._views = cycle([kvmeta.operators.open(node, options=options) for node in nodes])

    def changed(self, change: tuple[str, Any], timeout_s: float) -> str:
        """Try a change, `("drain", "n3-1")` say, until it is made; return what keeps it from being so."""
        name, *arguments = change
        tries = 0

        def make(view: Cluster) -> str:
            nonlocal tries
            tries += 1
            try:
                getattr(view, name)(*arguments)
            except NotFoundError:  # gone: an earlier try took effect, though its answer was lost
                if tries == 1:
                    raise
            return ""

        return self._until(make, timeout_s)

    def joined(self, names: list[str], timeout_s: float) -> str:
        """Wait until these nodes, and no others, are members and nothing moves; return what is not so."""

        def fault(view: Cluster) -> str:
            status = view.status()
            members = sorted(member.name for member in status.members)
            if members != sorted(names):
                return f"members are {', '.join(members)}"
            return f"{status.moving} partitions move" if status.moving else ""

        return self._until(fault, timeout_s)

    def left(self, name: str, timeout_s: float) -> str:
        """Wait until a node is no member any more; return what is not so."""

        def fault(view: Cluster) -> str:
            status = view.status()
            return f"{name} is a member" if name in {member.name for member in status.members} else ""

        return self._until(fault, timeout_s)

    def settled(self, timeout_s: float) -> str:
        """Wait until all members answer, nothing moves and no hint waits; return what is not so."""

        def fault(view: Cluster) -> str:
            status = view.status()
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

    def _until(self, told_by: Callable[[Cluster], str], timeout_s: float) -> str:
        end = time.monotonic() + timeout_s
        while True:
            try:
                told = told_by(next(self._views))
            except KvmetaError as error:
                told = str(error)
            if not told or time.monotonic() > end:
                return told
            time.sleep(1.0)
