"""Health, metrics and documentation over HTTP: open without a key, and telling nothing private."""

from __future__ import annotations

import re

import httpx

from tests.deployments.routes import ROUTES
from tests.system.stack import BASE, TINY, Stack

TIMEOUT_SECONDS = 60.0


def get(stack: Stack, path: str) -> httpx.Response:
    response = httpx.get(f"{stack.url}{path}", timeout=TIMEOUT_SECONDS)
    assert len(response.headers.get_list("x-request-id")) == 1
    for secret in (stack.key, str(stack.home), stack.environment["AWS_ENDPOINT_URL"]):
        assert secret not in response.text
    return response


def test_the_process_lives(stack: Stack) -> None:
    response = get(stack, "/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_it_is_ready_and_says_each_models_state(stack: Stack) -> None:
    response = get(stack, "/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "models": {BASE: "ready", TINY: "ready"}})


def test_metrics_count_what_was_answered(stack: Stack) -> None:
    def count(name: str) -> float:
        page = get(stack, "/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        found = re.search(rf"^{re.escape(name)} (\S+)$", page.text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = count("lorikeet_first_token_seconds_count")
    with stack.client() as http:
        for _ in range(3):
            http.post("chat/completions", json={"model": TINY, "messages": "Hi", "max_tokens": 1}).raise_for_status()
        assert http.post("chat/completions", json={"model": TINY}).status_code == 400
    assert count("lorikeet_first_token_seconds_count") >= before + 3  # others may ask meanwhile
    assert "lorikeet_chats_running" in get(stack, "/metrics").text


def test_chats_go_straight_to_a_replica_that_runs(stack: Stack) -> None:
    """Through Serve they are answered as well, and cost more: nothing else would tell."""

    def direct() -> float:
        found = re.search(r'^lorikeet_calls_total\{way="direct"\} (\S+)$', get(stack, "/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    with stack.client() as client:
        body = {"model": TINY, "messages": "hi", "max_tokens": 2}
        assert client.post("chat/completions", json=body).status_code == 200  # the first to hear of it, if no other test was before
        before = direct()
        for _ in range(3):
            assert client.post("chat/completions", json=body).status_code == 200
    assert direct() >= before + 3


def test_the_documentation_names_every_route(stack: Stack) -> None:
    assert "openapi.json" in get(stack, "/docs").text
    schema = get(stack, "/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert routes == {f"{method.upper()} {path}" for path, methods in ROUTES.items() for method in methods}
    body = schema["paths"]["/api/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "n", "max_tokens", "temperature", "top_p", "ignore_eos", "stream"} <= body["properties"].keys()


def test_a_plain_request_id_of_the_clients_is_kept(stack: Stack) -> None:
    response = httpx.get(f"{stack.url}/healthz", headers={"x-request-id": "mine-1"}, timeout=TIMEOUT_SECONDS)
    assert response.headers.get_list("x-request-id") == ["mine-1"]
    ids = {get(stack, "/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
