"""Verifying a tree: every page of every segment is read and checked, every damaged hash range named.

Directory, filter, header and footer hold nothing the rows do not say, so damage to them loses no entry; it is
reported all the same, without a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvmeta.engine.segment import Segment
from kvmeta.engine.tree import Tree
from kvmeta.store import Damage

_PAGES = 4096


def pages_of(tree: Tree) -> int:
    """Return how many row pages a verification of the tree's runs reads."""
    return sum(len(segment.states) for segment in tree.view.segments)


def verify(tree: Tree, progress: Callable[[int], None]) -> Iterator[Damage]:
    """Yield the damages of a tree's runs; `progress` is called with each number of pages read."""
    for segment in tree.view.segments:
        yield from _verify_segment(segment, tree.dataset.name, progress)


def _verify_segment(segment: Segment, dataset: str, progress: Callable[[int], None]) -> Iterator[Damage]:
    if segment.damage:
        first, last = segment.record.first, segment.record.last
        yield Damage(str(segment.path), dataset, None, first, last, segment.damage)
        progress(len(segment.states))
        return
    for part in segment.verify_tables():
        yield Damage(str(segment.path), dataset, None, None, None, f"the {part} is damaged; no entry is lost")
    for start in range(0, len(segment.states), _PAGES):
        for page in segment.verify(start, _PAGES):
            first, last = segment.page_range(page)
            reason = "the device cannot read it" if page in segment.unreadable else "checksum mismatch"
            yield Damage(str(segment.path), dataset, page + 1, first, last, reason)
        progress(min(_PAGES, len(segment.states) - start))
