"""What the sync and the asyncio SDK share: what is asked of a server, and what is tried again."""
