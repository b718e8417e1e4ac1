"""The stacks that are compared. Each is a context manager that yields a running `Stack` and leaves no process behind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.models import Workload
from benchmarks.stacks import lorikeet, ray_serve_llm, vllm_server
from benchmarks.stacks.stack import Stack

Start = Callable[[Workload, Path], AbstractContextManager[Stack]]

VLLM = "vllm"
VLLM_PAIR = "vllm_pair"
LORIKEET = "lorikeet"
LORIKEET_2X2 = "lorikeet_2x2"
RAY = "ray_serve_llm"
DIRECT = "ray_direct"
DIRECT_BASE = "ray_direct_base"


def all_stacks() -> dict[str, Start]:
    """How to start each stack, by its name in results."""
    return {
        VLLM: vllm_server.start,
        VLLM_PAIR: vllm_server.start_pair,
        LORIKEET: functools.partial(lorikeet.start, LORIKEET),
        LORIKEET_2X2: functools.partial(lorikeet.start, LORIKEET_2X2, gateways=2, replicas=2),
        RAY: functools.partial(ray_serve_llm.start, RAY),
        DIRECT: functools.partial(ray_serve_llm.start, DIRECT, direct=True),
        DIRECT_BASE: functools.partial(ray_serve_llm.start, DIRECT_BASE, direct=True, adapters=False),
    }
