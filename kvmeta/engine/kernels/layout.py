"""Column numbers of the tables that describe a view to the kernels, and the words of a row.

A *row* is 6 u8 words: mixed ID high, low, version, volume | length << 32, offset, checksum | tag << 32. Words
3 to 5 are the 24 bytes of a LOCATION as they are. Packed, the same row is 8 columns (`COLUMNS`).
"""

import numpy as np

ROW_WORDS = 6
ROW_BYTES = 48
HIGH, LOW, VERSION, WORD3, WORD4, WORD5 = range(6)
COLUMNS = 8  # high, low, version, volume, length, offset, checksum, tag

PAGE_BYTES = 4096
PAYLOAD_BYTES = 4088  # the last 8 bytes of a page are its checksum
BUCKET_ROWS = 32
BLOCK_BYTES = 64  # of the blocked Bloom filter

# The columns of a memtable's description: u8[memtables, 4]. MEM_USED is the address of its row count, which
# is raised before its first row is published: at 0 there is nothing to find.
MEM_ROWS, MEM_SLOTS, MEM_MASK, MEM_USED = range(4)
MEM_FIELDS = 4

# The columns of a run's description: u8[runs, 4]. IDs whose high half is below RUN_FROM are not its own.
RUN_SEGMENT, RUN_SEGMENTS, RUN_FROM, RUN_HIGHEST = range(4)
RUN_FIELDS = 4

# The columns of a segment's description: u8[segments, 48].
SEG_BASE = 0  # address of the file's first byte
SEG_ROWS = 1
SEG_ROW_BYTES = 2
SEG_PAGE_ROWS = 3
SEG_RANGES = 4  # address of u4[range count + 1]: first bucket of each range
SEG_BUCKETS = 5  # address of u4[buckets + 1]: first row of each bucket
SEG_RANGE_BITS = 6
SEG_RANGE_FIRST = 7
SEG_RANGE_COUNT = 8
SEG_FIRST = 9  # high half of the first and of the last row
SEG_LAST = 10
SEG_STATES = 11  # address of u1[row pages]: PAGE_UNREAD, PAGE_GOOD or PAGE_DAMAGED
SEG_SEED = 12
SEG_FILTER = 13  # address of the filter's blocks, 0 = none
SEG_BLOCKS = 14
SEG_PRIOR = 15  # rows of the run's segments before this one
SEG_COLUMNS = 16  # then for each column: base, shift, byte offset in the row, mask
SEG_FIELDS = SEG_COLUMNS + 4 * COLUMNS

PAGE_UNREAD, PAGE_GOOD, PAGE_DAMAGED = np.uint8(0), np.uint8(1), np.uint8(2)
