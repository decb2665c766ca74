"""Which runs to merge next: a pure function of their sizes.

Tiered above, leveled at the bottom. Runs of one tier (sizes within a factor `fan_out`) are merged when there
are `fan_out` of them; when all upper runs together hold a `bottom_ratio`-th of the bottom run's rows, they
are merged into it. So there is at most one bottom run, most IDs are in it, and only the few rows above carry
filters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunShape:
    """What the choice depends on."""

    number: int
    rows: int
    bottom: bool


@dataclass(frozen=True)
class Choice:
    """Runs to merge; `bottom` says whether the output is the new bottom run."""

    inputs: tuple[int, ...]
    bottom: bool


def choose(
    runs: Sequence[RunShape],
    *,
    bottom_free: bool,
    memtable_rows: int,
    fan_out: int,
    bottom_ratio: int,
    upper_runs_max: int,
) -> Choice | None:
    """Return the merge that is due, or None.

    `runs` are those fit to be merged: no damage, in no other merge. `bottom_free`: no merge into the bottom
    run is under way. One may last long; meanwhile the upper runs are still merged among themselves.
    """
    upper = [run for run in runs if not run.bottom]
    bottom_rows = sum(run.rows for run in runs if run.bottom)
    upper_rows = sum(run.rows for run in upper)
    enough = len(upper) >= fan_out or upper_rows >= fan_out * memtable_rows  # a bulk load's runs are large
    if bottom_free and enough and upper_rows * bottom_ratio >= bottom_rows:
        return everything(runs)
    tiers: dict[int, list[RunShape]] = defaultdict(list)
    for run in upper:
        tiers[_tier(run.rows, memtable_rows, fan_out)].append(run)
    for _, members in sorted(tiers.items()):
        if len(members) >= fan_out:
            return Choice(tuple(run.number for run in members), bottom=False)
    if len(upper) > upper_runs_max:  # writers wait, though no tier is full: merge the smaller half
        smaller = sorted(upper, key=lambda run: run.rows)[: max(2, len(upper) // 2)]
        return Choice(tuple(run.number for run in smaller), bottom=False)
    return None


def everything(runs: Sequence[RunShape], *, rewrite: bool = False) -> Choice | None:
    """Return the merge of all runs into one bottom run; None where there is nothing to gain.

    `rewrite`: a single bottom run may hold entries (tombstones, expired ones) that a merge would drop.
    """
    if not runs or (len(runs) == 1 and runs[0].bottom and not rewrite):
        return None
    return Choice(tuple(run.number for run in runs), bottom=True)


def _tier(rows: int, memtable_rows: int, fan_out: int) -> int:
    tier = 0
    while rows > memtable_rows:
        rows //= fan_out
        tier += 1
    return tier
