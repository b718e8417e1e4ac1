"""The frames of one request at its gateway (`stream.py` sorts them), until the client takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from adapters_store.errors import LorikeetError, Overloaded
from deployments.messages import DATA, END, ERROR, HEAD, REFUSED, Refused, error_from_payload


@dataclass(frozen=True, slots=True)
class Head:
    """The payload of a HEAD frame, unread."""

    payload: bytes


class Inbox:
    """The frames of one request, in order, as they arrive at its gateway.

    `get` returns what has come since the last call as one run of bytes: a slow reader costs fewer, larger writes. Holds at most
    `limit_bytes` that the client has not taken; beyond it the request fails with Overloaded, and `on_overflow` is called at once, since a
    reader that is stuck will not see the failure soon.
    """

    __slots__ = ("_buffered", "_chunks", "_error", "_limit_bytes", "_on_overflow", "_take", "_waiter", "ended", "head")

    def __init__(self, limit_bytes: int, on_overflow: Callable[[], None] | None = None) -> None:
        self.head: Head | None = None
        self.ended = False
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._limit_bytes = limit_bytes
        self._on_overflow = on_overflow
        self._error: LorikeetError | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def offer_to(self, take: Callable[[bytes], bool] | None) -> None:
        """Offer what comes while `get` waits to `take` first; what that takes, and returns True for, `get` does not return.

        Only then is nothing on its way between `get` and whoever called it, that what is taken could overtake.
        """
        self._take = take

    def put(self, kind: bytes, payload: bytes) -> None:
        if self.ended:
            return
        if kind == DATA:
            if not payload:
                return  # to a reader, an empty part is the end
            if self._take is not None and self._waiter is not None and not self._waiter.done() and self._take(payload):
                return
            self._buffered += len(payload)
            if self._buffered > self._limit_bytes:
                self.fail(
                    Overloaded(f"the client left more than {self._limit_bytes} bytes of its answer unread: read faster, or ask for less")
                )
                if self._on_overflow is not None:
                    self._on_overflow()
                return
            self._chunks.append(payload)
        elif kind == HEAD:
            self.head = Head(payload)
            return  # always followed by DATA, END or ERROR in the same message or later: nobody needs waking for it
        elif kind == END:
            self.ended = True
        elif kind == ERROR:
            self.fail(error_from_payload(payload))
            return
        elif kind == REFUSED:
            self.fail(Refused("the replica takes no more"))
            return
        self._wake()

    def fail(self, error: LorikeetError) -> None:
        """End the request with `error`, raised to the reader once it has taken what came before."""
        if self.ended:
            return
        self._error = error
        self.ended = True
        self._wake()

    async def get(self) -> bytes:
        """The next run of bytes; b"" when the answer is complete. Raises the error that ended it."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        return data

    @property
    def started(self) -> bool:
        """Whether any part of the answer has come."""
        return bool(self._chunks) or self.ended

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
