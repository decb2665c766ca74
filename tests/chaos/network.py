"""A network of hosts on one machine: a namespace each, one bridge between them, nothing of it outside.

    host ── eth0 ══ veth ══ bridge0 (in the namespace of the hub) ══ veth ══ eth0 ── host

Faults act where packets arrive: a host drops, refuses or loses what comes from others. What a host sends can
be slowed down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tests.system.disks import run

_SUBNET = "10.77.0"


class Host:
    """One host; `address` is its own in the network."""

    def __init__(self, namespace: str, address: str) -> None:
        self._namespace = namespace
        self.address = address

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` on this host."""
        return ["ip", "netns", "exec", self._namespace, *words]

    def drop(self, senders: Iterable[Host]) -> None:
        """Let no packet of others arrive here."""
        for sender in senders:
            self._rule(sender, "-j", "DROP")

    def reset(self, senders: Iterable[Host]) -> None:
        """Answer each TCP packet of others with a reset."""
        for sender in senders:
            self._rule(sender, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")

    def lose(self, senders: Iterable[Host], share: float) -> None:
        """Lose a share of the packets of others, at random."""
        for sender in senders:
            self._rule(
                sender, "-m", "statistic", "--mode", "random", "--probability", f"{share:.3f}", "-j", "DROP"
            )

    def met(self) -> int:
        """Return how many packets the rules here have met: dropped, refused or lost."""
        told = run(*self.command("iptables", "-w", "-v", "-x", "-n", "-L", "INPUT"))
        return sum(int(line.split()[0]) for line in told.splitlines()[2:])

    def slow(self, kbit_s: int) -> None:
        """Send at most so much from now on; little at once, else the burst alone is enough for seconds."""
        run(*self.command("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", f"{kbit_s}kbit",
                          "burst", "3kb", "latency", "400ms"))  # fmt: skip

    def held_up(self) -> int:
        """Return how often a packet had to wait, or was dropped, for there was no room to send it."""
        told = run(*self.command("tc", "-s", "qdisc", "show", "dev", "eth0"))
        return sum(int(count) for count in re.findall(r"(?:dropped|overlimits) (\d+)", told))

    def quicken(self) -> None:
        """Send as fast as it goes again."""
        run(*self.command("tc", "qdisc", "del", "dev", "eth0", "root"))

    def heal(self) -> None:
        """Let all packets in again."""
        run(*self.command("iptables", "-w", "-F", "INPUT"))

    def _rule(self, sender: Host, *what: str) -> None:
        run(*self.command("iptables", "-w", "-A", "INPUT", "-s", sender.address, *what))


class Network:
    """Hosts that reach each other. Use it as a context manager: all of it goes at the end."""

    def __init__(self) -> None:
        self._prefix = f"kvmeta-{os.getpid()}"
        self._namespaces: list[str] = []
        self.hosts: dict[str, Host] = {}

    def add(self, name: str) -> Host:
        """Make a host."""
        namespace = self._namespace(name)
        host = Host(namespace, f"{_SUBNET}.{len(self.hosts) + 1}")
        self.hosts[name] = host
        run("ip", "-n", self._hub, "link", "add", "name", name, "type", "veth",
            "peer", "name", "eth0", "netns", namespace)  # fmt: skip
        run("ip", "-n", self._hub, "link", "set", name, "master", "bridge0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        return host

    def heal(self) -> None:
        """Let all packets of all hosts through again."""
        for host in self.hosts.values():
            host.heal()

    def met(self) -> int:
        """Return how many packets the rules of all hosts have met."""
        return sum(host.met() for host in self.hosts.values())

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def __enter__(self) -> Self:
        self._hub = self._namespace("hub")
        run("ip", "-n", self._hub, "link", "add", "name", "bridge0", "type", "bridge")
        run("ip", "-n", self._hub, "link", "set", "bridge0", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for namespace in self._namespaces:
            run("ip", "netns", "del", namespace)
