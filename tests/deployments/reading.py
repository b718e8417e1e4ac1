"""Reads an inbox to its end."""

from __future__ import annotations

import asyncio

from deployments.inbox import Inbox

SECONDS = 10.0  # for what takes milliseconds on a quiet machine


async def read_all(inbox: Inbox) -> bytes:
    """All that `inbox` still gives. Raises what ends it, TimeoutError after SECONDS."""
    parts = []
    async with asyncio.timeout(SECONDS):
        while part := await inbox.get():
            parts.append(part)
    return b"".join(parts)
