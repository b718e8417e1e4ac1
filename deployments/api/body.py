"""Reading a request's body, never further than its limit, and never waiting long for the next of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import Request

from adapters_store.errors import TooLarge, TooSlow

IDLE_SECONDS = 30.0  # a client that stalls for longer must not keep its place among those served at once
SLOWEST_BYTES_PER_SECOND = 16 << 10  # nor one that trickles, once it has been waited for so long in all:
PATIENCE_SECONDS = 60.0


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be longer than `limit_bytes`."""
    check_declared_length(request, limit_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in body_chunks(request):
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def body_chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises TooSlow when nothing more comes for IDLE_SECONDS, or too little for long."""
    chunks = aiter(request.stream())
    received, waited = 0, 0.0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(f"the rest of the request body did not come within {IDLE_SECONDS:g} s: send it again") from None
        received += len(chunk)
        waited += time.monotonic() - began
        if waited > PATIENCE_SECONDS and received < waited * SLOWEST_BYTES_PER_SECOND:
            raise TooSlow(
                f"the request body came at {received / waited:.0f} bytes/s over {waited:.0f} s, too slowly: an adapter's files can be sent "
                "in parts, by a resumable upload"
            )
        yield chunk


def check_declared_length(request: Request, limit_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)


def too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the request body is larger than {limit_bytes} bytes, the most that is taken here: send less")
