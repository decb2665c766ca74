"""The attacks, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.hostile.attack import Attack
from tests.hostile.bombs import GzipBombs, Lz4Bombs
from tests.hostile.floods import Pings, RapidResets, Settings
from tests.hostile.garbage import Garbage, MalformedFrames
from tests.hostile.oversize import Oversize
from tests.hostile.silence import Silence
from tests.hostile.trickle import HalfMessages, Trickle
from tests.hostile.unread import Unread

ATTACKS: dict[str, Callable[[str, float], Attack]] = {
    "silence": Silence,
    "unread": Unread,
    "oversize": Oversize,
    "gzip-bombs": GzipBombs,
    "lz4-bombs": Lz4Bombs,
    "malformed": MalformedFrames,
    "resets": RapidResets,
    "trickle": Trickle,
    "half-messages": HalfMessages,
    "pings": Pings,
    "settings": Settings,
    "garbage": Garbage,
}
