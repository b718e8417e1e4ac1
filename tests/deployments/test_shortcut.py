"""Chats past Serve's HTTP: the middleware in front of something shaped as Serve's replica is, under the server that Serve runs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from ray.serve._private.http_util import RequestIdMiddleware
from ray.serve._private.replica import Replica, UserCallableWrapper
from starlette.types import Receive, Scope, Send

from deployments.api.app import HttpApp
from deployments.api.shortcut import PastServe
from tests.deployments.direct import SECONDS, until
from tests.deployments.gateway import CHAT, KEY, FakeAnswer, Gateway
from tests.s3 import free_port


class Serve:
    """As much of Serve's replica as the middleware looks at: it keeps the gateway, and answers by its app."""

    def __init__(self, app: HttpApp) -> None:
        self.asked: list[str] = []
        self._user_callable_wrapper = self
        self._callable = self
        self._app = app

    def __serve_build_asgi_app__(self) -> HttpApp:
        return self._app

    async def direct_ingress(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        await self._app(scope, receive, send)


class HangingAnswer(FakeAnswer):
    """Begins, and never ends."""

    async def parts(self, take: Callable[[bytes], bool] | None = None) -> AsyncIterator[bytes]:
        yield b"data: begun\n\n"
        await asyncio.sleep(3600)


@pytest.fixture
async def running(api: Gateway) -> AsyncIterator[tuple[Serve, httpx.AsyncClient]]:
    serve = Serve(api.app)
    port = free_port()
    app = PastServe(RequestIdMiddleware(serve.direct_ingress))
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="critical"))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {KEY}"}, timeout=SECONDS, trust_env=False
    ) as client:
        yield serve, client
    server.should_exit = True
    await asyncio.wait_for(task, SECONDS)


async def test_chats_go_past_serve_and_the_rest_through_it(api: Gateway, running: tuple[Serve, httpx.AsyncClient]) -> None:
    serve, client = running
    for _ in range(3):  # on one connection
        whole = await client.post("/api/v1/chat/completions", json=CHAT)
        assert (whole.status_code, whole.json()) == (200, {"whole": "answer"})
        assert whole.headers["x-request-id"]
    api.dispatch.answer = FakeAnswer([b"data: one\n\n", b"data: [DONE]\n\n"])
    streamed = await client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers={"x-request-id": "mine"})
    assert (streamed.text, streamed.headers["x-request-id"]) == ("data: one\n\ndata: [DONE]\n\n", "mine")
    assert not serve.asked
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/v1/chat/completions")).status_code == 405
    assert serve.asked == ["/healthz", "/v1/chat/completions"]


async def test_errors_of_chats_keep_their_status(running: tuple[Serve, httpx.AsyncClient]) -> None:
    _, client = running
    assert (await client.post("/v1/chat/completions", content=b"{")).status_code == 400
    assert (await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer wrong"})).status_code == 401


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_lets_go_of_its_answer(api: Gateway, running: tuple[Serve, httpx.AsyncClient], stream: bool) -> None:
    _, client = running
    answer = api.dispatch.answer = HangingAnswer([])
    asking = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "stream": stream}))
    await until(lambda: api.dispatch.asked)
    assert not answer.closed
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await until(lambda: answer.closed)


async def test_a_client_that_leaves_before_the_first_part_stops_the_call(
    api: Gateway, running: tuple[Serve, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = running
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def hangs(*arguments: Any) -> FakeAnswer:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()
        raise AssertionError

    monkeypatch.setattr(api.dispatch, "open", hangs)
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
    await asyncio.wait_for(begun.wait(), SECONDS)
    asking.cancel()
    await asyncio.wait_for(stopped.wait(), SECONDS)


async def test_a_client_that_leaves_while_it_sends_is_let_go(
    running: tuple[Serve, httpx.AsyncClient], api: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    _, client = running
    url = httpx.URL(client.base_url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 99\r\n\r\n"
    writer.write(head.encode() + b"{")
    await writer.drain()
    writer.close()
    await until(lambda: "client gone" in api.services.metrics.page().decode())
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "it is nobody's fault"
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert len(api.dispatch.asked) == 1


async def test_a_process_without_a_gateway_leaves_all_to_serve() -> None:
    asked = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])

    async def nothing(*_: Any) -> Any:
        return None

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await PastServe(RequestIdMiddleware(proxy))(scope, nothing, nothing)
    assert asked == ["/v1/chat/completions"]


def test_serve_keeps_the_gateway_where_it_is_looked_for() -> None:
    """Else chats go through Serve, which answers them as well and costs more."""
    assert "self._direct_ingress_asgi," in inspect.getsource(Replica)
    assert "self._user_callable_wrapper" in inspect.getsource(Replica.__init__)
    assert "self._callable" in inspect.getsource(UserCallableWrapper.__init__)
