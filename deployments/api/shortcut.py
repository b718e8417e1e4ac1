"""Chats past Serve's own handling of HTTP: a middleware that Serve puts before it, in the process of a gateway.

    HAProxy ──▶ uvicorn ──▶ PastServe ──▶ chats: HttpApp
                                     └──▶ all else: Serve's request ids, contexts, metrics and tasks ──▶ HttpApp

What Serve does for a chat that is needed, is done here: when the client goes away, the chat is cancelled. Draining needs nothing: a gateway
that stops has uvicorn wait for its connections. docs/decisions/0010 has the cost.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.app import CHAT_PATHS, HttpApp
from deployments.api.context import PAST_SERVE


def middlewares() -> list[Middleware]:
    """What Serve asks for, once in each process that speaks HTTP."""
    return [Middleware(PastServe)]


class PastServe:
    """Hands chats to the process's `HttpApp`. Without one, as in Serve's proxy, it hands everything on."""

    def __init__(self, app: ASGIApp) -> None:
        self._serve = app
        self._chats = _http_app(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._chats is None or scope["type"] != "http" or scope["path"] not in CHAT_PATHS or scope["method"] != "POST":
            await self._serve(scope, receive, send)
            return
        scope.setdefault("state", {})[PAST_SERVE] = True
        await _Chat(self._chats, scope, receive, send).answer()


class _Chat:
    """One chat, cancelled when its client goes away."""

    def __init__(self, app: HttpApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        self._gone = False

    async def answer(self) -> None:
        try:
            await self._app(self._scope, self._receive_body, self._send)
        except asyncio.CancelledError:
            if not self._gone:
                raise
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _receive_body(self) -> Message:
        """The next of the body; after its last, the connection is watched. A client that goes while it sends ends its chat there."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
            raise asyncio.CancelledError
        if self._watch is None and not message.get("more_body", False):
            self._watch = asyncio.get_running_loop().create_task(self._until_gone())
        return message

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        assert self._task is not None
        self._task.cancel()


def _http_app(serve: ASGIApp) -> HttpApp | None:
    """The gateway's application, found behind Serve's own, which keeps the gateway for itself."""
    replica = getattr(getattr(serve, "_app", None), "__self__", None)
    gateway: Any = getattr(getattr(replica, "_user_callable_wrapper", None), "_callable", None)
    build = getattr(gateway, "__serve_build_asgi_app__", None)
    app = build() if build is not None else None
    return app if isinstance(app, HttpApp) else None
