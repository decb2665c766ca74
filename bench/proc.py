"""What the kernel says of a process: its memory and its reads and writes, from /proc."""

from __future__ import annotations

from pathlib import Path


def status_bytes(pid: int | str, name: str) -> int:
    """Return a size in /proc/PID/status, such as "RssAnon"; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def io_bytes(name: str) -> int:
    """Return what this process has caused to be read ("read_bytes") or written ("write_bytes")."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
