"""A gateway's whole app (tests/deployments/gateway.py) behind real HTTP, for the command and the client. No model answers in it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from cluster.ports import pick_free
from tests.deployments.gateway import gateway

START_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class LiveGateway:
    url: str


@contextlib.contextmanager
def live_gateway(folder: Path) -> Iterator[LiveGateway]:
    port = pick_free(1)[0]
    started, ended = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with gateway(folder) as running:
            config = uvicorn.Config(running.app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while not server.started:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            started.set()
            await ended.wait()
            server.should_exit = True
            await serving

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(START_TIMEOUT_SECONDS), "the test's gateway did not start"
    try:
        yield LiveGateway(f"http://127.0.0.1:{port}")
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()
