"""Faults that need root: full disks, read-only mounts, power cuts, failing system calls."""
