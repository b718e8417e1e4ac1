"""The real haproxy on Serve's own configuration and our rules: what is made again when a gateway dies, and what must not be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from cluster.ports import pick_free
from configs.load import load
from deployments.environment import environment
from deployments.haproxy_config import BUFFER_BYTES

SECONDS = 20.0
CHAT = "/api/v1/chat/completions"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nwhole\n"
BEGUN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nbegun\n\r\n"


@dataclass
class Gateway:
    """Answers each request with `says`, then closes: with nothing to say, as a process that has been killed."""

    says: bytes
    bodies: list[bytes] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/-/healthz" in head:
                    writer.write(ANSWER)
                    continue
                length = next((line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b"0")
                self.bodies.append(await reader.readexactly(int(length)))
                writer.write(self.says)
                await writer.drain()
                break
        writer.close()


@dataclass
class Proxy:
    """A haproxy before one gateway that dies and one that lives."""

    dying: Gateway
    living: Gateway
    client: httpx.AsyncClient

    async def until_the_dying_one_was_asked(self, ask: Callable[[], object]) -> list[httpx.Response | httpx.HTTPError]:
        """The answers of as many requests as it took."""
        answers: list[httpx.Response | httpx.HTTPError] = []
        async with asyncio.timeout(SECONDS):
            while not self.dying.bodies:
                try:
                    answers.append(await ask())  # type: ignore[misc]
                except httpx.HTTPError as error:
                    answers.append(error)
        return answers


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with contextlib.AsyncExitStack() as stack:
        dying, living = Gateway(b""), Gateway(ANSWER)
        for gateway in (dying, living):
            server = await asyncio.start_server(gateway.serve, "127.0.0.1", 0)
            gateway.port = server.sockets[0].getsockname()[1]
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
        port = pick_free(3)
        file = tmp_path / "haproxy.cfg"
        _write_as_serve_does(file, *port, (dying.port, living.port))
        process = _start(file)
        stack.callback(process.wait, 10.0)
        stack.callback(process.kill)
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port[0]}", timeout=SECONDS))
        await _until_up(client, process)
        yield Proxy(dying, living, client)


def _write_as_serve_does(file: Path, port: int, stats: int, metrics: int, gateways: tuple[int, int]) -> None:
    said = environment(load(None, []))
    options = HTTPOptions(host="127.0.0.1", port=port)
    config = HAProxyConfig(
        http_options=options,
        stats_port=stats,
        metrics_port=metrics,
        socket_path=f"/tmp/lk-{port}.sock",  # a unix socket's path must be short
        maxconn=256,
        nbthread=1,
        retry_on=said["RAY_SERVE_HAPROXY_RETRY_ON"],
        retries=int(said["RAY_SERVE_HAPROXY_RETRIES"]),
        bufsize=int(said["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
        observe_mark_down_enabled=False,
        has_received_routes=True,
        has_received_servers=True,
    )
    servers = [ServerConfig(name=f"gateway{index}", host="127.0.0.1", port=port) for index, port in enumerate(gateways)]
    backend = BackendConfig(name="lorikeet", path_prefix="/", app_name="lorikeet", servers=servers)
    HAProxyApi(config, {"lorikeet": backend}, str(file))._generate_config_file_internal()


def _start(file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from deployments.haproxy import main; main()", "-db", "-f", str(file)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})


async def _until_up(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            assert process.poll() is None, "haproxy has ended: what it said is in this test's output"
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get("/-/healthz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


async def test_a_chat_whose_gateway_died_is_answered_by_another(proxy: Proxy) -> None:
    async def ask() -> httpx.Response:
        return await proxy.client.post(CHAT, json={"model": "tiny"})

    answers = await proxy.until_the_dying_one_was_asked(ask)
    assert [answer.content for answer in answers] == [b"whole\n"] * len(answers)  # type: ignore[union-attr]
    assert proxy.living.bodies[-1] == proxy.dying.bodies[0] == b'{"model":"tiny"}', "the same request, whole"


async def test_a_body_that_comes_apart_from_its_headers_is_made_again_too(proxy: Proxy) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"model":'
        await asyncio.sleep(0.1)
        yield b'"tiny"}'

    async def ask() -> httpx.Response:
        return await proxy.client.post(CHAT, content=slowly(), headers={"content-length": "16"})

    answers = await proxy.until_the_dying_one_was_asked(ask)
    assert [answer.content for answer in answers] == [b"whole\n"] * len(answers)  # type: ignore[union-attr]


async def test_an_answer_that_has_begun_is_cut_and_not_made_again(proxy: Proxy) -> None:
    proxy.dying.says = BEGUN

    async def ask() -> httpx.Response:
        return await proxy.client.post(CHAT, json={"model": "tiny"})

    answers = await proxy.until_the_dying_one_was_asked(ask)
    assert isinstance(answers[-1], httpx.RemoteProtocolError), "a stream that breaks must not look whole"
    assert len(proxy.living.bodies) == len(answers) - 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_what_may_have_been_done_is_not_made_again(proxy: Proxy, method: str) -> None:
    async def ask() -> httpx.Response:
        return await proxy.client.request(method, "/api/v1/adapters/acme/support/versions", json={"source": "s3://a/b"})

    *_, last = await proxy.until_the_dying_one_was_asked(ask)
    assert isinstance(last, httpx.Response) and last.status_code >= 500
    assert len(proxy.dying.bodies) == 1


async def test_a_read_is_made_again(proxy: Proxy) -> None:
    async def ask() -> httpx.Response:
        return await proxy.client.get("/api/v1/models")

    answers = await proxy.until_the_dying_one_was_asked(ask)
    assert [answer.content for answer in answers] == [b"whole\n"] * len(answers)  # type: ignore[union-attr]


async def test_a_chat_larger_than_the_buffer_gets_through(proxy: Proxy) -> None:
    proxy.dying.says = ANSWER
    body = b"x" * (4 * BUFFER_BYTES)
    for _ in range(2):
        assert (await proxy.client.post(CHAT, content=body)).content == b"whole\n"
    assert [*proxy.dying.bodies, *proxy.living.bodies] == [body, body]
