"""A gateway's whole HTTP contract in a process of its own, over real HTTP: the app of `gateway.py` under uvicorn.

    with served(tmp_path) as server:
        Client(server.url, KEY)

Several may share one store, as gateways do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn

from deployments.api.app import HttpApp
from tests.deployments.gateway import gateway
from tests.s3 import free_port

START_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def memory_bytes(self) -> int:
        """What of the process is in memory (RSS)."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def served(folder: Path, *, store_url: str | None = None, **settings: Any) -> Iterator[Served]:
    """`settings` overlay the tree as in `gateway`; the store is a folder in `folder` unless given."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = json.dumps({"folder": str(folder), "store_url": store_url, "port": port, "settings": settings})
    process = subprocess.Popen([sys.executable, "-m", "tests.deployments.served", arguments])
    server = Served(f"http://127.0.0.1:{port}", port, process)
    try:
        _wait(server)
        yield server
    finally:
        server.kill()


def _wait(server: Served) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        assert server.process.poll() is None, "the server ended before it answered"
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{server.url}/healthz", timeout=1.0, trust_env=False)
            return
        time.sleep(0.05)
    raise AssertionError(f"the server did not answer within {START_TIMEOUT_SECONDS:g} s")


async def _serve(folder: str, store_url: str | None, port: int, settings: dict[str, Any]) -> None:
    async with gateway(Path(folder), store_url=store_url, **settings) as running:
        await uvicorn.Server(uvicorn.Config(HttpApp(running.services), host="127.0.0.1", port=port, log_level="warning")).serve()


if __name__ == "__main__":
    asyncio.run(_serve(**json.loads(sys.argv[1])))
