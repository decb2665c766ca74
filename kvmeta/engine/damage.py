"""What is lost of a tree's segments: damaged pages, and the stretches of the hash order that they may hold.

`verify.py` looks for damage; this tells of what has been found, by whatever touched it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmeta.engine.run import Run
from kvmeta.engine.segment import Segment
from kvmeta.engine.tree import Tree


@dataclass(frozen=True)
class Lost:
    """What is lost of a segment: row pages (none: the whole file), and stretches of high halves, disjoint."""

    segment: int
    pages: tuple[int, ...]
    stretches: tuple[tuple[int, int], ...]

    @property
    def ranges(self) -> int:
        """Return how many ranges that is, as `verify` counts them."""
        return max(1, len(self.pages))


def lost(tree: Tree) -> list[Lost]:
    """Return what is lost of a tree's runs, as far as it is known."""
    out = []
    for run in tree.runs:
        damage = run.damage()
        for segment in run.segments:
            number = segment.record.number
            if number in damage:
                out.append(Lost(number, damage[number], _stretches(run, segment, damage[number] or (0,))))
    return out


def _stretches(run: Run, segment: Segment, pages: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return the high halves that pages may hold, neighbours joined; below its `from_high` a run has none."""
    out: list[tuple[int, int]] = []
    for page in pages:
        first, last = (mixed >> 64 for mixed in segment.page_range(page))
        first = max(first, run.record.from_high)
        if first > last:
            continue
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return tuple(out)
