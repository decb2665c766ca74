"""A lease, as the node that holds it sees it: by its own clock, never for longer than it lasts."""

from __future__ import annotations

import asyncio

from kvmeta_server.cluster.seams import Authority


class Lease:
    """A lease that is kept alive; `left_s` is how long it surely still lasts, by this machine's own clock."""

    def __init__(self, authority: Authority, ttl_s: int) -> None:
        self._authority = authority
        self._ttl_s = ttl_s
        self._until = 0.0
        self.id = 0

    def left_s(self) -> float:
        """Return for how many seconds the lease surely still lasts; 0 where that is not known."""
        return max(0.0, self._until - asyncio.get_running_loop().time())

    async def renew(self) -> bool:
        """Keep the lease alive, or take another where it has ended; return whether it is another."""
        asked = asyncio.get_running_loop().time()
        if self.id:
            lasts_s = await self._authority.keep_alive(self.id)
            if lasts_s:
                self._until = asked + lasts_s
                return False
        self._until = 0.0
        self.id = await self._authority.grant(self._ttl_s)
        self._until = asked + self._ttl_s
        return True

    async def end(self) -> None:
        """Give the lease up."""
        if self.id:
            await self._authority.revoke(self.id)
            self.id, self._until = 0, 0.0
