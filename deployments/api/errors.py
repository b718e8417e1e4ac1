"""Every error, in OpenAI's shape. One table maps class to status, type and code; nothing else decides a status.

    raise LorikeetError ──▶ status_of ──▶ {"error": {"message", "type", "param", "code"}}, Retry-After where trying again helps

What is not a LorikeetError (a bug) becomes 500 internal_error with the request id and no word of its inside.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from adapters_store import errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    type: str
    code: str


# In order: the first class that fits decides.
_TABLE: tuple[tuple[type[errors.LorikeetError], _Kind], ...] = (
    (errors.TooSlow, _Kind(408, "invalid_request_error", "request_timeout")),
    (errors.InvalidRequest, _Kind(400, "invalid_request_error", "invalid_request_error")),
    (errors.NotAuthenticated, _Kind(401, "authentication_error", "invalid_api_key")),
    (errors.PermissionDenied, _Kind(403, "permission_error", "permission_denied")),
    (errors.NotFound, _Kind(404, "invalid_request_error", "model_not_found")),
    (errors.Conflict, _Kind(409, "conflict_error", "conflict")),
    (errors.TooLarge, _Kind(413, "invalid_request_error", "request_too_large")),
    (errors.Overloaded, _Kind(429, "rate_limit_error", "overloaded")),
    (errors.Unavailable, _Kind(503, "service_unavailable_error", "unavailable")),
    (errors.LorikeetError, _Kind(500, "server_error", "internal_error")),
)
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


def error_body(error: errors.LorikeetError, request_id: str) -> bytes:
    """`error` as the JSON that a client reads, alone or as the last event of a stream."""
    kind = _kind(error)
    message = error.message
    if kind.status == 500:
        message = f"{message}: tell the operator this request id: {request_id}"
    return _body(message, kind.type, error.param, kind.code)


def error_response(error: errors.LorikeetError, request_id: str) -> Response:
    headers = {}
    retry_after_seconds = getattr(error, "retry_after_seconds", None)
    if retry_after_seconds is not None:
        headers["retry-after"] = str(math.ceil(retry_after_seconds))
    if isinstance(error, errors.NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error, request_id), _kind(error).status, headers, media_type="application/json")


async def on_lorikeet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.LorikeetError)
    return error_response(error, request.state.request_id)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router refuses by itself: unknown routes, wrong methods."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    messages = {
        404: f"there is no {path} here: see /docs for the routes",
        405: f"{method} is not allowed on {path}: see /docs for the routes",
    }
    message = messages.get(error.status_code, HTTPStatus(error.status_code).phrase.lower())
    code = _HTTP_CODES.get(error.status_code, "invalid_request_error")
    body = _body(message, "invalid_request_error", None, code)
    return Response(body, error.status_code, dict(error.headers or {}), media_type="application/json")


def unexpected_error_response(error: Exception, request_id: str) -> Response:
    """A bug of ours: logged whole, told as a request id."""
    logger.error("request_failed", extra={"request_id": request_id}, exc_info=error)
    return error_response(errors.InternalError("something went wrong here"), request_id)


def is_our_fault(error: BaseException) -> bool:
    """Whether a request that ended with `error` counts as failed: 5xx does; what the client did wrong, and a full queue, do not."""
    return isinstance(error, Exception) and (not isinstance(error, errors.LorikeetError) or _kind(error).status >= 500)


def _kind(error: errors.LorikeetError) -> _Kind:
    return next(kind for cls, kind in _TABLE if isinstance(error, cls))


def _body(message: str, type_: str, param: str | None, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": type_, "param": param, "code": code}}, ensure_ascii=False).encode()
