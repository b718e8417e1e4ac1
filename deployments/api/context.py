"""The outermost layer: every request gets an id, every response says it, every request leaves one log line, and no trace gets out."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import unexpected_error_response
from deployments.api.metrics import Metrics

logger = logging.getLogger(__name__)

PAST_SERVE = "past_serve"  # in a request's state: Serve has not seen it

_PLAIN_ID = re.compile(rb"[!-~]{1,128}")


class RequestContext:
    """ASGI middleware. Puts `request_id` into the request's state: the client's x-request-id if it is plain, else a new one.

    Behind Ray Serve every request has one, and Serve says it in the response; what came past it (`shortcut.py`) is marked.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        plain = _PLAIN_ID.fullmatch(given) is not None
        request_id = given.decode() if plain else secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        header = [] if plain and not state.get(PAST_SERVE) else [(b"x-request-id", request_id.encode())]
        started, status = time.perf_counter(), 0

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *header]
            return send(message)  # not a coroutine of its own: this runs for every token

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise  # the response has begun: the server cuts the connection
            await unexpected_error_response(error, request_id)(scope, receive, send_with_id)
        finally:
            self._metrics.responses.labels(getattr(scope.get("route"), "path", "none"), status or "client gone").inc()
            self._log(scope, request_id, status, time.perf_counter() - started)

    def _log(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1e3, 1),
        }
        logger.info("request", extra=fields if status else {**fields, "client": "gone"})
