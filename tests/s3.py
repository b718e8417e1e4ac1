"""A real S3 endpoint for tests: moto's server in a process of its own, spoken to over HTTP.

with moto_server() as s3, s3.in_environment():
    s3.create_bucket("adapters")
    store = open_store("s3://adapters/prefix")
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import boto3
import httpx

START_TIMEOUT_SECONDS = 60.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """`environment` is what a process needs to reach it through boto3."""

    url: str
    environment: Mapping[str, str]

    def create_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )

    @contextlib.contextmanager
    def in_environment(self) -> Iterator[None]:
        """Set `environment` in this process for the while."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def moto_server() -> Iterator[S3Endpoint]:
    """Start moto's server on a free port, wait until it answers, and stop it in the end."""
    port = free_port()
    recording = tempfile.NamedTemporaryFile(prefix="moto-recording-")  # noqa: SIM115 - closed below
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "MOTO_RECORDER_FILEPATH": recording.name},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        yield endpoint_at(port)
    finally:
        process.kill()
        process.wait(timeout=10)
        recording.close()


@contextlib.contextmanager
def recorded_requests(endpoint_url: str) -> Iterator[list[tuple[str, str]]]:
    """What S3 itself is asked for meanwhile, as (method, path); the list is filled at the end."""
    requests: list[tuple[str, str]] = []
    recorder = f"{endpoint_url}/moto-api/recorder"
    with httpx.Client(timeout=60.0) as client:
        client.post(f"{recorder}/reset-recording").raise_for_status()
        client.post(f"{recorder}/start-recording").raise_for_status()
        try:
            yield requests
        finally:
            client.post(f"{recorder}/stop-recording").raise_for_status()
            recording = client.get(f"{recorder}/download-recording").raise_for_status().text
            client.post(f"{recorder}/reset-recording").raise_for_status()
        requests.extend((entry["method"], urlsplit(entry["url"]).path) for entry in map(json.loads, recording.splitlines()))


def endpoint_at(port: int) -> S3Endpoint:
    """What listens on `port` of this machine and takes `CREDENTIALS`."""
    url = f"http://127.0.0.1:{port}"
    return S3Endpoint(url, {"AWS_ENDPOINT_URL": url, **CREDENTIALS, "AWS_DEFAULT_REGION": "us-east-1"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"moto's server ended at once with status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"moto's server did not answer within {START_TIMEOUT_SECONDS:g} s")
