"""The HTTP application: routes under /api/v1 and /v1, one error shape, one outer layer.

    RequestContext ──▶ POST …/chat/completions ──▶ chat.py, without a framework in between
                  └──▶ everything else ──────────▶ FastAPI

A chat passes five layers of FastAPI and Starlette otherwise, once more for each token of its answer; docs/decisions/0006 has the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from adapters_store.errors import InvalidRequest, LorikeetError
from deployments.api import adapters, aliases, canaries, health, labels, models, retirement, upload_parts, versions, warm
from deployments.api.chat import answer_chat, create_chat_completion
from deployments.api.context import RequestContext
from deployments.api.errors import error_response, on_http_error, on_lorikeet_error
from deployments.api.openapi import json_body
from deployments.api.schemas import ChatRequest
from deployments.api.services import Services

PREFIXES = ("/api/v1", "/v1")


CHAT_PATHS = frozenset(f"{prefix}/chat/completions" for prefix in PREFIXES)


class HttpApp:
    """The whole HTTP contract over `services`, as an ASGI application."""

    def __init__(self, services: Services) -> None:
        self._routes = build_routes(services)
        self._outermost = RequestContext(self._lead, services.metrics)

    def use(self, services: Services) -> None:
        """Serve by these from the next request on."""
        self._routes.state.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._outermost(scope, receive, send)

    async def _lead(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Chats straight to their handler, the rest to FastAPI."""
        if scope["type"] != "http" or scope["path"] not in CHAT_PATHS or scope["method"] != "POST":
            await self._routes(scope, receive, send)
            return
        scope["route"] = _ChatRoute(scope["path"])
        request = Request(scope, receive)
        try:
            response = await answer_chat(request, self._routes.state.services)
        except LorikeetError as error:
            response = await on_lorikeet_error(request, error)
        await response(scope, receive, send)


@dataclass(frozen=True, slots=True)
class _ChatRoute:
    """Says which route it was, as Starlette's own would."""

    path: str


def build_routes(services: Services) -> FastAPI:
    """Every route as FastAPI knows it; the chat's too, for /docs and for whoever uses a wrong method."""
    app = FastAPI(title="Lorikeet", summary="Serverless LoRA: an adapter's name is a model", docs_url="/docs", redoc_url=None)
    app.state.services = services
    app.include_router(health.router)
    for prefix in PREFIXES:
        shown = prefix == PREFIXES[0]  # /v1 is the same again, for OpenAI clients' default paths
        app.include_router(_chat_router(), prefix=prefix, include_in_schema=shown)
        app.include_router(models.router, prefix=prefix, include_in_schema=shown)
        app.include_router(adapters.router, prefix=prefix, include_in_schema=shown)
        app.include_router(versions.router, prefix=prefix, include_in_schema=shown)
        app.include_router(upload_parts.router, prefix=prefix, include_in_schema=shown)
        app.include_router(labels.router, prefix=prefix, include_in_schema=shown)
        app.include_router(retirement.router, prefix=prefix, include_in_schema=shown)
        app.include_router(aliases.router, prefix=prefix, include_in_schema=shown)
        app.include_router(canaries.router, prefix=prefix, include_in_schema=shown)
        app.include_router(warm.router, prefix=prefix, include_in_schema=shown)
    app.add_exception_handler(LorikeetError, on_lorikeet_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    return app


def _chat_router() -> APIRouter:
    router = APIRouter(tags=["chat"])
    router.add_api_route(
        "/chat/completions",
        create_chat_completion,
        methods=["POST"],
        summary="Answer a chat, streamed or not",
        response_class=Response,
        openapi_extra=json_body(ChatRequest),  # parsed by hand (`schemas.py`): FastAPI only documents it
    )
    return router


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """Query and path parameters that FastAPI checked."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    return error_response(InvalidRequest(f"{field} is {first['input']!r}: {first['msg']}", param=field), request.state.request_id)
