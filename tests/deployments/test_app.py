"""The HTTP contract's frame: both base paths, headers, streams, the documentation page, what the health routes say."""

from __future__ import annotations

import asyncio
import json

import pytest

from adapters_store.errors import InternalError, Overloaded, Unavailable
from configs.settings import AutoscalingSettings, ModelSettings
from deployments.api.app import PREFIXES
from tests.deployments.gateway import BASE, CHAT, FakeAnswer, Gateway
from tests.deployments.routes import ROUTES


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_both_base_paths_answer(api: Gateway, prefix: str) -> None:
    response = await api.client.post(f"{prefix}/chat/completions", json=CHAT)
    assert (response.status_code, response.content) == (200, b'{"whole": "answer"}')
    assert (await api.client.get(f"{prefix}/models")).json()["data"][0]["id"] == BASE
    assert (await api.client.get(f"{prefix}/adapters")).json() == {"object": "list", "data": [], "has_more": False, "next": None}


async def test_openapi_names_every_route(api: Gateway) -> None:
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    assert {path: set(operations) for path, operations in paths.items()} == ROUTES


async def test_openapi_documents_every_field_of_a_chat_request(api: Gateway) -> None:
    from deployments.api.schemas import ChatRequest

    page = (await api.client.get("/openapi.json")).json()
    schema = page["paths"]["/api/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(ChatRequest.model_fields)
    assert "$ref" not in json.dumps(schema)


async def test_docs_page_renders(api: Gateway) -> None:
    page = await api.client.get("/docs")
    assert page.status_code == 200 and "swagger" in page.text.lower() and "/openapi.json" in page.text


async def test_the_engine_gets_only_what_was_set(api: Gateway) -> None:
    await api.client.post("/v1/chat/completions", json={**CHAT, "temperature": 0, "user": "u", "stop": None, "stream": True})
    [(request_id, base, model, adapter, body, stream)] = api.dispatch.asked
    assert (base, model, adapter, stream) == (BASE, BASE, None, True)
    assert json.loads(body) == {"messages": CHAT["messages"], "temperature": 0.0, "stream": True}
    assert len(request_id) >= 16


async def test_a_completion_says_what_answered_where_its_adapter_was_and_how_long_that_took(api: Gateway) -> None:
    api.dispatch.answer = FakeAnswer([b"{}"], cold="disk", wait_ms=42.0)
    response = await api.client.post("/v1/chat/completions", json=CHAT)
    assert response.headers["x-lorikeet-version"] == BASE
    assert response.headers["x-lorikeet-cold"] == "disk"
    assert response.headers["x-lorikeet-cold-ms"] == "42.0"
    assert response.headers["content-type"] == "application/json"
    assert api.dispatch.answer.closed == 1


async def test_a_stream_is_passed_on_and_closed(api: Gateway) -> None:
    api.dispatch.answer = FakeAnswer([b"data: 1\n\n", b"data: [DONE]\n\n"])
    response = await api.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.content == b"data: 1\n\ndata: [DONE]\n\n"
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    assert response.headers["x-lorikeet-version"] == BASE
    assert "x-lorikeet-cold" not in response.headers and "x-lorikeet-cold-ms" not in response.headers
    assert api.dispatch.answer.closed == 1


async def test_an_error_mid_stream_is_an_event_and_no_done_follows(api: Gateway) -> None:
    api.dispatch.answer = FakeAnswer([b"data: 1\n\n"], error=Unavailable("the replica stopped"))
    response = await api.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    first, last, rest = response.text.split("\n\n")
    assert (response.status_code, first, rest) == (200, "data: 1", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert api.dispatch.answer.closed == 1


async def test_an_error_before_the_first_part_keeps_its_status(api: Gateway) -> None:
    api.dispatch.error = Overloaded("full", retry_after_seconds=2.5)
    response = await api.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


async def test_a_stream_from_a_sleeping_model_begins_with_comments(api: Gateway) -> None:
    api.states[BASE] = "asleep"
    api.dispatch.gate.clear()
    api.dispatch.answer = FakeAnswer([b"data: 1\n\n", b"data: [DONE]\n\n"], cold="store")
    asking = asyncio.create_task(api.client.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    await _metric(api, "lorikeet_chats_waking 1.0")
    api.dispatch.gate.set()
    response = await asking
    assert response.status_code == 200
    assert response.text.startswith(f": waking {BASE}\n\n")
    assert response.text.endswith("\n\ndata: 1\n\ndata: [DONE]\n\n")
    assert response.headers["x-lorikeet-version"] == BASE and "x-lorikeet-cold" not in response.headers
    assert api.dispatch.answer.closed == 1
    await _metric(api, "lorikeet_chats_waking 0.0")
    await _metric(api, 'lorikeet_adapters_found_total{where="store"} 1.0')


async def test_a_sleeping_model_that_does_not_wake_is_unavailable(api: Gateway) -> None:
    scaling = AutoscalingSettings(min_replicas=0, wake_timeout_seconds=0.2)
    api.services.waking.serve([ModelSettings(id=BASE, source="/nowhere", autoscaling=scaling)])
    api.states[BASE] = "asleep"
    api.dispatch.gate.clear()
    response = await api.client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")
    assert "was waking" in response.json()["error"]["message"]
    response = await api.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *comments, event = response.text.rstrip("\n").split("\n\n")
    assert response.status_code == 200 and set(comments) == {f": waking {BASE}"}
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "unavailable"


async def _metric(api: Gateway, line: str) -> None:
    """Until the gateway's own counters say so."""
    async with asyncio.timeout(10.0):
        while line not in (await api.client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_whole_answer_that_fails_is_closed(api: Gateway) -> None:
    api.dispatch.answer = FakeAnswer([b"{"], error=InternalError("broke"))
    response = await api.client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert api.dispatch.answer.closed == 1


async def test_health_needs_no_key_and_all_else_does(api: Gateway) -> None:
    api.client.headers.pop("authorization")
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert (await api.client.get(path)).status_code == 200
    for path, methods in ROUTES.items():
        if not path.startswith("/api"):
            continue
        for method in methods:
            response = await api.client.request(method, path.replace("{part}", "1").replace("{", "").replace("}", ""))
            assert response.status_code == 401, (method, path)
            assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(("state", "status"), [("ready", 200), ("asleep", 200), ("starting", 503), ("failed", 503), ("unknown", 503)])
async def test_readyz_says_what_is_missing(api: Gateway, state: str, status: int) -> None:
    api.states[BASE] = state
    response = await api.client.get("/readyz")
    assert (response.status_code, response.json()["models"]) == (status, {BASE: state})
    assert ("retry-after" in response.headers) == (status == 503)


async def test_metrics_count_what_was_answered(api: Gateway) -> None:
    api.dispatch.answer = FakeAnswer([b"{}"], cold="store")
    await api.client.post("/v1/chat/completions", json=CHAT)
    await api.client.get("/nowhere")
    page = (await api.client.get("/metrics")).text
    assert "lorikeet_chats_running 3.0" in page
    assert 'lorikeet_adapters_found_total{where="store"} 1.0' in page
    assert 'lorikeet_calls_total{way="direct"} 1.0' in page
    assert "lorikeet_first_token_seconds_count 1.0" in page
    assert 'lorikeet_http_responses_total{route="none",status="404"} 1.0' in page
