"""Bare vLLM: its own OpenAI server with the 16 adapters as LoRA modules, no authentication, no line of log per request."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.models import Workload
from benchmarks.processes import running
from benchmarks.stacks.stack import Stack, engine_environment, wait_until_answers
from tests.s3 import free_port


@contextlib.contextmanager
def start(workload: Workload, folder: Path) -> Iterator[Stack]:
    """Run it in `folder` until the block ends."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    modules = [f"{adapter.name}={adapter}" for adapter in workload.adapters]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(workload.folder)),
        *("--served-model-name", workload.base, "--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"),
        *("--disable-uvicorn-access-log", "--lora-modules", *modules),
        *_flags(workload),
    ]
    with running(command, engine_environment(workload), folder / "vllm.log") as processes:
        wait_until_answers(f"{url}/health", processes)
        models = (workload.base, *(adapter.name for adapter in workload.adapters))
        yield Stack("vllm", url, None, models, workload, processes)


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
