"""What a running platform's own processes tell: how busy a base model's engine is, how much memory each part holds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

import httpx
import psutil

from cluster import run_file
from cluster.processes import of_run
from tests.system.stack import Stack

IDLE = 0.25  # of a core: an idle engine takes 0.02, one that generates nearly all of one
WINDOW_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Parts:
    """The processes of one run that a chat with one base model passes through."""

    gateway: psutil.Process
    replica: psutil.Process
    engine: tuple[psutil.Process, ...]  # vLLM's own processes: the engine core and its workers

    @property
    def rss_bytes(self) -> dict[str, int]:
        return {
            "gateway": self.gateway.memory_info().rss,
            "replica": self.replica.memory_info().rss,
            "engine": sum(process.memory_info().rss for process in self.engine),
        }

    def engine_load(self, seconds: float = WINDOW_SECONDS) -> float:
        """Cores that the engine takes, watched for `seconds`."""
        began, before = time.monotonic(), _cpu_seconds(self.engine)
        time.sleep(seconds)
        return (_cpu_seconds(self.engine) - before) / (time.monotonic() - began)

    def seconds_until_idle(self, limit_seconds: float) -> float:
        """How long the engine goes on working, at most `limit_seconds`; fails beyond."""
        began = time.monotonic()
        while True:
            at = time.monotonic()
            load = self.engine_load()
            if load < IDLE:
                return at - began
            assert at - began < limit_seconds, f"the engine still takes {load:.2f} cores after {limit_seconds:g} s"


def parts_of(stack: Stack, model: str) -> Parts:
    """The processes that serve `model` in `stack`, which has one gateway and one replica of it."""
    run = run_file.read(stack.home)
    assert run is not None, f"nothing runs in {stack.home}"
    titles = {process: _title(process) for process in of_run(run.run_id)}
    [gateway] = [process for process, title in titles.items() if title.startswith("ray::ServeReplica:lorikeet:")]
    [replica] = [process for process, title in titles.items() if title.startswith(f"ray::ServeReplica:model-{model}:")]
    engine = tuple(child for child in replica.children(recursive=True) if "VLLM" in _title(child))
    assert engine, f"{model} has no engine process"
    return Parts(gateway, replica, engine)


def chats_running(stack: Stack) -> int:
    """Chats that the gateway holds, as it counts them itself."""
    found = re.search(r"^lorikeet_chats_running ([0-9.]+)$", httpx.get(f"{stack.url}/metrics", timeout=30).text, re.M)
    assert found is not None
    return int(float(found[1]))


def _cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
