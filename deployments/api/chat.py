"""POST /chat/completions: from bytes to a dispatched request, and its answer back as one JSON body or a stream of events."""

from __future__ import annotations

import time

from fastapi import Request, Response

from adapters_store import access
from adapters_store.keys import KeyRecord
from deployments.api.body import read_body
from deployments.api.events import EventStream
from deployments.api.schemas import ChatRequest, parse_chat_request
from deployments.api.services import Services, Target, services_of
from deployments.dispatch import Answer
from deployments.waking import Opening


async def create_chat_completion(request: Request) -> Response:
    """The route that FastAPI knows and documents; `app.py` leads chats past it."""
    return await answer_chat(request, services_of(request))


async def answer_chat(request: Request, services: Services) -> Response:
    """Answer one chat. What goes wrong before the first part of the answer is raised, and so keeps its status code.

    A stream from a model without a replica begins before that (`waking.py`).
    """
    started = time.perf_counter()
    caller = await services.auth.authenticate(request.headers.get("authorization"))
    chat = parse_chat_request(await read_body(request, services.settings.gateway.max_body_bytes))
    target = await services.target(chat.model, caller.viewer, _person(chat, caller), tries=caller.may(access.Scope.INFER))
    caller.require(access.Scope.INFER)
    request_id, stream = request.state.request_id, bool(chat.stream)
    body, watch = chat.for_engine(), services.trials.watch(target)

    async def opening() -> Answer:
        answer = await services.dispatch.open(request_id, target.base, chat.model, target.adapter, body, stream)
        services.metrics.first_token.observe(time.perf_counter() - started)
        services.metrics.calls.labels(answer.way).inc()
        if answer.cold is not None:
            services.metrics.adapters_found.labels(answer.cold).inc()
        if stream:
            watch.first_token()
            services.shadows.copy(target, chat.model, body, stream)
        return answer

    try:
        answer = await services.waking.open(target.base, opening, stream=stream)
        headers = _headers(target, answer)
        if stream or isinstance(answer, Opening):
            return EventStream(answer, headers, request_id, watch)
        whole = await _whole(answer)
    except BaseException as error:
        watch.ended(error)
        raise
    watch.ended()
    services.shadows.copy(target, chat.model, body, stream)
    return Response(whole, headers=headers, media_type="application/json")


async def _whole(answer: Answer) -> bytes:
    try:
        return await answer.whole()
    finally:
        answer.close()


def _person(chat: ChatRequest, caller: KeyRecord) -> str:
    """Who is answered by the same version each time while an alias has a canary: the user, if the request names one, else the key."""
    return f"user {chat.user}" if chat.user else f"key {caller.id}"


def _headers(target: Target, answer: Answer | Opening) -> dict[str, str]:
    headers = {"x-lorikeet-version": target.version}
    if answer.cold is not None:
        headers["x-lorikeet-cold"] = answer.cold
    if answer.wait_ms is not None:
        headers["x-lorikeet-cold-ms"] = f"{answer.wait_ms:.1f}"
    return headers
