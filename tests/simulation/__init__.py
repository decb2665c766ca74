"""The simulator's own tests: seeds that must pass, and planted faults that must not."""
