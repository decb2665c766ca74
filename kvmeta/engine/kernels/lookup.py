"""The batched lookup: the largest version of each ID over memtables and runs, in groups of 64.

Within a run a group goes through four steps, each for all its IDs before the next, so that their cache misses
overlap: the filter's block, the bucket directory's entry, the row's page, then the walk. Runs come in the
order of their highest versions; an ID is done as soon as the version it has is at least the highest of every
source left. An ID whose row would lie in a damaged page of a source that is looked into fails, whatever
another source says.
"""

import numpy as np

from kvmeta.engine.kernels.directory import (
    ABSENT,
    DAMAGED,
    bucket_of,
    bucket_rows,
    filter_block,
    filter_has,
    find_row,
    find_segment,
    row_address,
    row_page,
)
from kvmeta.engine.kernels.layout import (
    MEM_MASK,
    MEM_ROWS,
    MEM_SLOTS,
    MEM_USED,
    PAGE_BYTES,
    RUN_FROM,
    RUN_HIGHEST,
    RUN_SEGMENT,
    RUN_SEGMENTS,
    SEG_BUCKETS,
    SEG_COLUMNS,
    SEG_FILTER,
    SEG_STATES,
)
from kvmeta.engine.kernels.memory import (
    RANGES_MAX,
    entry,
    field,
    load_u32,
    load_u64,
    njit,
    prefetch,
    will_need,
)
from kvmeta.engine.kernels.memtable import find

U = np.uint64
GROUP = 64
_TOMBSTONE = U(0x80)
_LOW32 = U(0xFFFFFFFF)


@njit
def packed_column(segment, address, which):
    """Return column `which` of the packed row at `address`."""
    at = SEG_COLUMNS + 4 * which
    return field(segment, at) + (
        (load_u64(address + field(segment, at + 2)) & field(segment, at + 3)) << field(segment, at + 1)
    )


@njit
def _take_packed(segment, address, versions, locations, i):
    """Take the packed row at `address` for ID i where its version is larger than what ID i has."""
    version = packed_column(segment, address, 2)
    if version > versions[i]:
        versions[i] = version
        locations[i, 0] = packed_column(segment, address, 3) | (packed_column(segment, address, 4) << U(32))
        locations[i, 1] = packed_column(segment, address, 5)
        locations[i, 2] = packed_column(segment, address, 6) | (packed_column(segment, address, 7) << U(32))


@njit
def _probe_memtable(memtable, mixed, start, end, versions, locations):
    if load_u64(field(memtable, MEM_USED)) == U(0):
        return
    rows, slots, mask = field(memtable, MEM_ROWS), field(memtable, MEM_SLOTS), field(memtable, MEM_MASK)
    for i in range(start, end):
        prefetch(slots + (mixed[i, 1] & mask) * U(4))
    for i in range(start, end):
        held = load_u32(slots + (mixed[i, 1] & mask) * U(4))
        if held:
            prefetch(rows + U(held - 1) * U(48))
    for i in range(start, end):
        row = find(rows, slots, mask, mixed[i, 0], mixed[i, 1])
        if row:
            version = load_u64(row + U(16))
            if version > versions[i]:
                versions[i] = version
                locations[i, 0] = load_u64(row + U(24))
                locations[i, 1] = load_u64(row + U(32))
                locations[i, 2] = load_u64(row + U(40))


@njit
def _choose(run, segments, mixed, ids, count, where):
    """Keep those of ids[:count] that bounds and filter say the run may hold; return their count."""
    first, segment_count = field(run, RUN_SEGMENT), field(run, RUN_SEGMENTS)
    run_from = field(run, RUN_FROM)
    kept = 0
    filtered = False
    for j in range(count):
        i = ids[j]
        high = mixed[i, 0]
        if high < run_from:
            continue
        s = find_segment(segments, first, segment_count, high)
        if s < 0:
            continue
        ids[kept], where[kept] = i, s
        kept += 1
        segment = entry(segments, s)
        if field(segment, SEG_FILTER):
            filtered = True
            prefetch(filter_block(segment, mixed[i, 1]))
    if not filtered:
        return kept
    count, kept = kept, 0
    for j in range(count):
        i, segment = ids[j], entry(segments, where[j])
        if not field(segment, SEG_FILTER) or filter_has(filter_block(segment, mixed[i, 1]), mixed[i, 0]):
            ids[kept], where[kept] = i, where[j]
            kept += 1
    return kept


@njit
def _aim(segments, mixed, ids, count, where, start, first, end):
    """Interpolate the row each of ids[:count] should be at, touching directory, page state and page."""
    for j in range(count):
        segment = entry(segments, where[j])
        bucket, place, any_row = bucket_of(segment, mixed[ids[j], 0])
        start[j], end[j] = place, U(0)
        if any_row:
            first[j], end[j] = bucket, U(1)
            prefetch(field(segment, SEG_BUCKETS) + bucket * U(4))
    for j in range(count):
        if end[j] == U(0):
            continue
        segment = entry(segments, where[j])
        first[j], end[j] = bucket_rows(segment, first[j])
        if first[j] == end[j]:
            end[j] = U(0)
            continue
        start[j] = first[j] + ((start[j] * (end[j] - first[j])) >> U(32))
        page = row_page(segment, start[j])
        prefetch(field(segment, SEG_STATES) + page)
        address = row_address(segment, page, start[j])
        # The aim is a few rows off, to either side, and a row has about 31 bytes: two lines on each side.
        # (Two lines in all cost 220 ns an ID at 20M rows, three 185, these five 160, seven 185.)
        prefetch(address)
        prefetch(address + U(64))
        prefetch(address - U(64))
        prefetch(address + U(128))
        prefetch(address - U(128))


@njit
def lookup(mixed, memtables, runs, segments, expired, raw, found, versions, locations, failed):
    """Look up `mixed` (u8[n, 2]); write found u1[n], versions u8[n], locations u8[n, 3], failed u1[n].

    All outputs start as zeros. An entry that is a tombstone or whose version is below `expired` counts as
    absent and is zeroed; with `raw` it is told as it is.
    """
    n = len(mixed)
    ids, where = np.empty(GROUP, np.int64), np.empty(GROUP, np.int64)
    start, first, end = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    for group in range(0, n, GROUP):
        group_end = min(n, group + GROUP)
        for m in range(len(memtables)):
            _probe_memtable(entry(memtables, m), mixed, group, group_end, versions, locations)
        for r in range(len(runs)):
            count = 0
            highest = runs[r, RUN_HIGHEST]
            for i in range(group, group_end):
                if versions[i] < highest:
                    ids[count] = i
                    count += 1
            if count == 0:
                break  # every later run's highest version is lower still
            count = _choose(entry(runs, r), segments, mixed, ids, count, where)
            _aim(segments, mixed, ids, count, where, start, first, end)
            for j in range(count):
                if end[j] == U(0):
                    continue
                i, segment = ids[j], entry(segments, where[j])
                address = find_row(segment, mixed[i, 0], mixed[i, 1], start[j], first[j], end[j])
                if address == DAMAGED:
                    failed[i] = 1
                elif address != ABSENT:
                    _take_packed(segment, address, versions, locations, i)
        for i in range(group, group_end):
            if versions[i] == U(0):
                continue
            if raw or (not versions[i] & _TOMBSTONE and versions[i] >= expired):
                found[i] = 1
            else:
                versions[i] = U(0)
                locations[i, 0], locations[i, 1], locations[i, 2] = U(0), U(0), U(0)


@njit
def ask(mixed, runs, segments):
    """Ask the kernel for every page that a lookup of `mixed` will touch.

    One pass over the whole batch before the lookup, so that the device sees a deep queue instead of one page
    fault at a time. What is in memory already costs the kernel a look into its table of pages.
    """
    n = len(mixed)
    pages = np.empty((RANGES_MAX, 2), np.uint64)
    pages[:, 1] = PAGE_BYTES
    ids, where = np.empty(GROUP, np.int64), np.empty(GROUP, np.int64)
    start, first, end = np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64), np.empty(GROUP, np.uint64)
    asked = 0
    for group in range(0, n, GROUP):
        for r in range(len(runs)):
            count = 0
            for i in range(group, min(n, group + GROUP)):
                ids[count] = i
                count += 1
            count = _choose(entry(runs, r), segments, mixed, ids, count, where)
            _aim(segments, mixed, ids, count, where, start, first, end)
            for j in range(count):
                if end[j] == U(0):
                    continue
                segment = entry(segments, where[j])
                pages[asked, 0] = row_address(segment, row_page(segment, start[j]), start[j]) & U(
                    0xFFFFFFFFFFFFF000
                )
                asked += 1
                if asked == RANGES_MAX:
                    will_need(pages, asked)
                    asked = 0
    will_need(pages, asked)
