"""An attack: what it opens at its start, and what it does over and over until it is told to end.

An attacker is a process of its own: `python -m tests.hostile.attack NAME HOST:PORT SCALE`. It says "ready"
once it has opened what it opens, and ends when its standard input does.
"""

from __future__ import annotations

import os
import resource
import select
import sys
from typing import Protocol

_FILES = 1024


class Attack(Protocol):
    """What makes a client hostile."""

    def step(self) -> None:
        """Do some more of it: less than half a second."""


def main() -> None:
    """Attack."""
    from tests.hostile.attacks import ATTACKS

    name, address, scale = sys.argv[1], sys.argv[2], float(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = ATTACKS[name](address, scale)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            attack.step()
        except OSError as error:  # refused for now
            print(error, file=sys.stderr)
            select.select([sys.stdin], [], [], 0.05)
    os._exit(0)  # thousands of connections are closed at once


if __name__ == "__main__":
    main()
