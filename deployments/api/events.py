"""A chat's answer as server-sent events, from the gateway's inbox to the connection.

    inbox ── the task waits for more, the connection has room ──▶ `PartWriter.now`: written in the turn that it came
         └── otherwise ─────────────────────────────────────────▶ the request's task: `PartWriter.write`, which waits for room

A task's turn for each token costs more than the token's own bytes (docs/decisions/0020).
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from adapters_store.errors import LorikeetError
from deployments.api.errors import error_body
from deployments.api.trials import Watch
from deployments.dispatch import Answer
from deployments.waking import Opening


class EventStream(Response):
    """Server-sent events as they come. An error after the first is told as an event, and ends the stream without [DONE]."""

    def __init__(self, answer: Answer | Opening, headers: dict[str, str], request_id: str, watch: Watch) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        # Proxies between here and the client must not hold events back.
        self.init_headers(
            {**headers, "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._answer = answer
        self._request_id = request_id
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = PartWriter(send)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for part in self._answer.parts(writer.now):
                    await writer.write(part)
                self._watch.ended()
            except LorikeetError as error:
                self._watch.ended(error)
                await writer.write(b"data: " + error_body(error, self._request_id) + b"\n\n")
            await writer.end()
        finally:
            writer.close()
            self._answer.close()


class PartWriter:
    """Writes the parts of one response's body by an ASGI `send`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._late: asyncio.Task[None] | None = None  # sends what `now` took and the connection had no room for yet

    def now(self, part: bytes) -> bool:
        """Take `part` without waiting; False if it has to be left to `write`. Called while nobody waits in `write`; raises no Exception."""
        if self._late is not None:
            return False
        try:
            sending = self._send({"type": "http.response.body", "body": part, "more_body": True}).__await__()
            waits_for = next(sending)
        except StopIteration:
            return True
        except Exception:  # `write` meets it too, and it is for whoever awaits that
            return False
        self._late = asyncio.ensure_future(_Begun(sending, waits_for))
        return True

    async def write(self, part: bytes) -> None:
        """Write `part` when there is room for it."""
        await self._catch_up()
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        await self._catch_up()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def close(self) -> None:
        """Nobody reads any more."""
        if self._late is not None and not self._late.cancel() and not self._late.cancelled():
            self._late.exception()  # seen: the response has ended, and why is told elsewhere

    async def _catch_up(self) -> None:
        if self._late is not None:
            await self._late
            self._late = None


class _Begun:
    """What was begun outside a task, to be awaited in one."""

    def __init__(self, sending: Generator[Any, Any, Any], waits_for: Any) -> None:
        self._sending = sending
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._waits_for
        except BaseException as error:
            try:
                waits_for = self._sending.throw(error)
            except StopIteration:
                return
            yield waits_for
        yield from self._sending
