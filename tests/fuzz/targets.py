"""Every fuzz target, by name. To run them, import this after `checked_memory.install`."""

from __future__ import annotations

from tests.fuzz import archives, messages, node_files, settings, store_files
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (store_files, messages, archives, settings, node_files)
    for target in module.TARGETS
}
