"""A tiny real HTTP server that answers Lorikeet's API from memory: what the client and the command are tested against, but for pushes.

with api_server() as server:
    Client(server.url, KEY)
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from cluster.ports import pick_free

KEY = "lk-test-key"
START_TIMEOUT_SECONDS = 20.0


@dataclass
class ApiServer:
    """`adapters` are the names it lists. `breaks_off` ends streams early."""

    url: str
    adapters: list[str] = field(default_factory=list)
    ready: bool = True
    breaks_off: bool = False


@contextlib.contextmanager
def api_server() -> Iterator[ApiServer]:
    port = pick_free(1)[0]
    state = ApiServer(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(_app(state), host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2))
    started = threading.Event()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(int(START_TIMEOUT_SECONDS / 0.02)):
        if server.started:
            break
        started.wait(0.02)
    assert server.started, "the test's server did not start"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join(10)


def _error(status: int, message: str, code: str, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}, status)


def _app(state: ApiServer) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def authenticate(request: Request, call_next):
        if request.url.path.startswith("/api") and request.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, "no such key", "invalid_api_key")
        return await call_next(request)

    @app.get("/readyz")
    async def readyz():
        return JSONResponse({"status": "ready" if state.ready else "not ready", "models": {"base": "ready"}}, 200 if state.ready else 503)

    @app.get("/api/v1/adapters")
    async def adapters(limit: int, after: str | None = None, owner: str | None = None):
        names = [name for name in sorted(state.adapters) if (after is None or name > after) and (not owner or name.startswith(f"{owner}/"))]
        data = [{"id": name, "base": "base", "rank": 8, "version": "a" * 64} for name in names[:limit]]
        more = len(names) > limit
        return {"object": "list", "data": data, "has_more": more, "next": data[-1]["id"] if more else None}

    @app.get("/api/v1/adapters/{owner}/{name}")
    async def adapter(owner: str, name: str):
        if f"{owner}/{name}" not in state.adapters:
            return _error(404, f"there is no adapter {owner}/{name}", "model_not_found", "model")
        version = {"version": "a" * 64, "base": "base", "rank": 8, "size_bytes": 5}
        return {"id": f"{owner}/{name}", "versions": [version], "aliases": {"production": "a" * 64}}

    @app.post("/api/v1/adapters/{owner}/{name}/versions/{version}/warm")
    async def warm(owner: str, name: str, version: str, replicas: int):
        if f"{owner}/{name}" not in state.adapters:
            return _error(503, "base has no replica that runs", "unavailable")
        held = min(replicas, 2)
        found = {"replicas": held, "running": 2, "found": ["store", "gpu"][:held], "wait_ms": [812.4, 0.0][:held]}
        return {"id": f"{owner}/{name}@{version}", "object": "adapter.warm", "version": version, "base": "base", **found}

    @app.get("/api/v1/models")
    async def models(after: str | None = None):
        names = [name for name in ("base", "demo/a", "demo/b") if after is None or name > after]
        return {"object": "list", "data": [{"id": name} for name in names[:2]], "has_more": len(names) > 2}

    @app.post("/api/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        if body["model"] != "base":
            return _error(404, f"there is no model {body['model']}", "model_not_found", "model")
        return StreamingResponse(_chunks(state, body["messages"][-1]["content"]), media_type="text/event-stream")

    return app


async def _chunks(state: ApiServer, asked: str) -> AsyncIterator[str]:
    for text in ("You said: ", asked):
        yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}) + "\n\n"
        if state.breaks_off:
            return
    yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + "\n\n"
    yield "data: [DONE]\n\n"
