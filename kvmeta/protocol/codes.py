"""The codes in a response's columns: one byte an ID."""

from __future__ import annotations

from kvmeta.batch import Outcome

ABSENT, FOUND, FAILED = 0, 1, 2
"""A lookup's states. A client takes one that it does not know for FAILED."""

EXISTS = 6
"""A write's outcome: an insert found the ID held. The others are those of `Outcome`."""

UNACKNOWLEDGED = 7
"""A write's outcome: too few replicas answered; it may take effect."""

UNAVAILABLE = 3
"""A lookup's state: too few replicas answered."""

TOOK_EFFECT = Outcome.RELOCATED
"""A write's outcome, whatever the write."""
