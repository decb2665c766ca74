"""By how much a server's resident memory may grow under attack, above what it has when idle.

Calls and bytes under way have bounds of their own (docs/operating.md, limits); what is beside them is gRPC's:
some 10 KiB a connection, and what a connection's window lets in.
"""

GROWN_MB_MAX = 400
_SPECIAL: dict[str, int] = {}


def grown_mb_max(name: str) -> int:
    """Return the bound of an attack, in MB."""
    return _SPECIAL.get(name, GROWN_MB_MAX)
