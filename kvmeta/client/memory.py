"""One setting of the C library that doubles what a connection carries.

glibc gives freed memory at the top of its heap back to the system, and takes it again page by page for the
next message: at 16,384 IDs a message this costs more than everything else a client does. It stops doing so
for sizes up to the largest block it has seen freed, as any numpy program teaches it sooner or later
(mallopt(3), "dynamic mmap threshold"). This teaches it at once, without touching a page.
"""

from __future__ import annotations

import numpy as np

_LESSON_BYTES = 30 << 20  # below the 32 MiB that glibc learns from at most


def keep_freed_memory() -> None:
    """Let glibc keep up to 60 MB of freed memory; elsewhere it does nothing."""
    lesson = np.empty(_LESSON_BYTES, np.uint8)
    del lesson
